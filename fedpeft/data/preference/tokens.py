"""Preferred and other answers -> one row of tokens per example; ``fedpeft.tuning.preference`` takes rows apart.

Each answer stands behind its prompt as a language model's example does, rendered and framed like one, and only its own
tokens are trained on. The preferred one comes first; ``segments`` is 1 on the other one. So everything that counts,
sorts, cuts and caches examples knows them already. ``task.max_length`` is of both together, as of a source and its
target: either side has at most half.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from fedpeft.config.task import Task
from fedpeft.data.encode_texts import IGNORED, EncodedDataset, Preference, Special
from fedpeft.data.people import owners_of
from fedpeft.data.preference.rows import sides_of
from fedpeft.data.records import ProblemLog, Records
from fedpeft.data.rendering import (
    Rendered,
    TokenIds,
    Tokenizer,
    bos_of,
    expect_fast,
    fitted,
    framed_texts,
    halves,
    note_nothing_to_train,
    rendered_rows,
)
from fedpeft.errors import DataInvalid

__all__ = ["encode_preferences", "whole_preferences"]

BATCH = 512

Framed = tuple[TokenIds, npt.NDArray[np.bool_], bool]
"""Tokens of one answer behind its prompt, which are trained on, and whether BOS stands before them."""


def encode_preferences(records: Records, task: Task, tokenizer: Tokenizer) -> EncodedDataset:
    """Tokenize validated records.

    An answer that is too long loses the beginning of its prompt first, then its own end, as in ``encode``.

    Args:
        records: of a convention of ``fedpeft.data.preference.rows``.
        task: beta and ``max_length``.
        tokenizer: the base's; a fast one.

    Raises:
        DataInvalid: rows that the chat template or the tokenizer refuses, or of which it keeps nothing.
    """
    ids: list[TokenIds] = []
    labels: list[npt.NDArray[np.int64]] = []
    segments: list[TokenIds] = []
    truncated = unknown = 0
    special, log = Special.of(tokenizer), ProblemLog()
    for sides in _examples(records, tokenizer, log):
        parts, cut = [], False
        for number, side in enumerate(sides):
            if side is None:
                continue
            tokens, trained, keep_first = side
            kept, shorter = fitted(trained, task.max_length // 2, keep_first=keep_first)
            cut |= shorter
            target = np.where(trained, tokens, IGNORED).astype(np.int64)[kept]
            parts.append((tokens[kept], target, np.full(len(kept), number, np.int32)))
        truncated += cut
        tokens_of, labels_of, segments_of = (np.concatenate(part) for part in zip(*parts, strict=True))
        unknown += special.knows_nothing_of(tokens_of)
        ids.append(tokens_of.astype(np.int32))
        labels.append(labels_of)
        segments.append(segments_of)
    log.raise_if_any("examples for this base's tokenizer")
    return EncodedDataset(
        input_ids=tuple(ids),
        labels=tuple(labels),
        truncated=truncated,
        unknown=unknown,
        segments=tuple(segments),
        owners=owners_of(records),
        preference=Preference(beta=task.beta),
    )


def whole_preferences(records: Records, tokenizer: Tokenizer, log: ProblemLog) -> Iterator[TokenIds]:
    """The tokens of each example, both sides, whatever their length; what is refused is noted."""
    for sides in _examples(records, tokenizer, log):
        yield np.concatenate([side[0] for side in sides if side is not None]).astype(np.int32)


def _examples(records: Records, tokenizer: Tokenizer, log: ProblemLog) -> Iterator[tuple[Framed | None, Framed | None]]:
    """The preferred and the other answer of each example; refused ones are noted and left out."""
    expect_fast(tokenizer)
    rows, bos = zip(records.origins, records.rows, strict=True), bos_of(tokenizer)
    while some := list(islice(rows, BATCH)):
        sides = [side for _, row in some for side in sides_of(row)]
        there = [side for side in sides if side is not None]
        made = iter(
            _framed(
                rendered_rows(
                    [side.row for side in there],
                    [side.convention for side in there],
                    tokenizer,
                    [side.context for side in there],
                ),
                tokenizer,
                bos,
            )
        )
        for (origin, _), pair in zip(some, zip(sides[::2], sides[1::2], strict=True), strict=True):
            found = [None if side is None else next(made) for side in pair]
            refused = next((one for one in found if isinstance(one, DataInvalid)), None)
            if refused is not None:
                log.add(origin, *halves(str(refused)))
            elif any(one is not None and not one[1].any() for one in found if not isinstance(one, DataInvalid)):
                note_nothing_to_train(origin, log)
            else:
                first, second = (None if isinstance(one, DataInvalid) else one for one in found)
                yield first, second


def _framed(
    rendered: list[Rendered | DataInvalid], tokenizer: Tokenizer, bos: int | None
) -> Iterator[Framed | DataInvalid]:
    made = framed_texts([one for one in rendered if isinstance(one, Rendered)], tokenizer, bos)
    for one in rendered:
        if isinstance(one, DataInvalid):
            yield one
            continue
        found, trained = next(made)
        # The first token of a text is told by nothing before it: it has no probability.
        trained[:1] = False
        yield found, trained, one.bos and bos is not None
