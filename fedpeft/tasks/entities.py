"""Entities in tagged words, and their F1: an entity is right if its words and its type are.

Tags are BIO (or IOBES): ``B-place``, ``I-place``, ``O``. Where an entity begins and ends is conlleval's rule, as
seqeval has it by default (Tjong Kim Sang and Buchholz 2000): an ``I-`` after another type, or after ``O``, begins one
too.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.tasks.measure import MOST_CLASSES, STEPS, Floats, Lanes, f1

__all__ = ["Entities", "entities_of", "entity_types"]

MOST_IN_AN_EXAMPLE = 64.0
"""The mean of a lane is cut to it: as many entities of one type in an example."""

_PREFIXES = ("B", "I", "E", "S")


def entity_types(tags: Sequence[str]) -> tuple[str, ...]:
    """The types of BIO tags, by name; none where the tags are not of that kind (parts of speech)."""
    pairs = [tag.partition("-") for tag in tags if tag != "O"]
    if not pairs or any(prefix not in _PREFIXES or not kind for prefix, _, kind in pairs):
        return ()
    return tuple(sorted({kind for _, _, kind in pairs}))


def entities_of(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(type, first word, last word) of each entity of one example.

    Example:
        >>> list(entities_of(["B-place", "I-place", "O", "I-person"]))
        [('place', 0, 1), ('person', 3, 3)]
    """
    begun, before, kind_before = 0, "O", ""
    for position, tag in enumerate((*tags, "O")):
        prefix, _, kind = tag.partition("-")
        other = kind != kind_before
        if before in _PREFIXES and (before in ("E", "S") or prefix in ("B", "S", "O") or other):
            yield kind_before, begun, position - 1
        if prefix in ("B", "S") or (prefix in ("I", "E") and (before in ("E", "S", "O") or other)):
            begun = position
        before, kind_before = prefix, kind


class Entities:
    """Tags of words: true and false positives and false negatives among the entities of each type.

    Args:
        tags: in the order of the outputs.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags, self.types = tuple(tags), entity_types(tags)

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: each is a number of entities in an example."""
        return (Lanes(3 * len(self.types), MOST_IN_AN_EXAMPLE, STEPS),)

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``fedpeft.tasks.measure.Measure``."""
        answers, right, members = scores.argmax(1), truth.astype(np.int64), np.asarray(example)
        place = {kind: number for number, kind in enumerate(self.types)}
        sums = np.zeros((3, len(self.types)))
        for one in np.unique(members):
            rows = np.flatnonzero(members == one)
            there = set(entities_of([self.tags[right[row]] for row in rows]))
            found = set(entities_of([self.tags[answers[row]] for row in rows]))
            for lane, entities in enumerate((found & there, found - there, there - found)):
                for kind, _, _ in entities:
                    sums[lane, place[kind]] += 1
        return sums.ravel()

    def metrics(self, means: Floats) -> dict[str, float]:
        """F1 over the entities of all types (micro), its precision and recall, and each type's F1."""
        tp, fp, fn = means.reshape(3, -1)
        whole = f1(tp.sum(), fp.sum(), fn.sum())
        if whole is None:
            return {}
        found = {"entity_f1": whole}
        for name, others in (("entity_precision", fp), ("entity_recall", fn)):
            every = tp.sum() + others.sum()
            found[name] = float(tp.sum() / every) if every > 0 else 0.0
        if len(self.types) <= MOST_CLASSES:
            each = {kind: f1(*sums) for kind, *sums in zip(self.types, tp, fp, fn, strict=True)}
            found |= {f"f1/{kind}": value for kind, value in each.items() if value is not None}
        return found
