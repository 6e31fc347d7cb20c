"""Gradients of people: what ``unit = "person"`` clips and adds noise to (user-level sampling, Charles et al. 2024).

A step takes people, not examples (``fedpeft.tuning.dp_sgd_mechanism``). Of each one taken at most a fixed number of
examples is looked at, drawn anew in each step; the mean of their gradients is the person's, and is clipped as one. So
somebody with a thousand notes moves the sum no further than somebody with one.

What DP-SGD's proof needs is as for examples: a person's mean must be its own to the last bit, whoever else is there.
An example's gradient is (``fedpeft.tuning.per_example_gradients``), and a person's are added up in an order that
depends on no other person. Memory: as many people at once as ``SUMS_BYTES`` holds sums of, which no data decides.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedpeft.data.people import NOBODY, Owners
from fedpeft.entropy import Entropy
from fedpeft.tuning.batches import Indices

__all__ = ["PersonGradients", "people_of"]

SUMS_BYTES = 64 * 2**20
"""Of the sums that are open at a time."""

GradientsOf = Callable[[Indices], Iterator[tuple[Indices, list[Tensor]]]]
"""``GradientSource.of``."""


def people_of(owners: Owners | None) -> tuple[Indices, ...]:
    """The examples of each person, ascending; nobody's are left out, and without owners nobody is there.

    Returns:
        In the order of their first examples.

    Example:
        >>> [own.tolist() for own in people_of(np.array([7, 0, 3, 7], np.uint64))]
        [[0, 3], [2]]
    """
    if owners is None:
        return ()
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] != NOBODY]
    cuts = np.flatnonzero(np.diff(owners[order])) + 1
    found = [part.astype(np.int64) for part in np.split(order, cuts) if len(part)]
    return tuple(sorted(found, key=lambda own: int(own[0])))


class PersonGradients:
    """The gradients of people, as ``noisy_sum`` asks for them.

    Args:
        of: the gradients of examples.
        people: the examples of each person.
        most: examples of one person that a step looks at, >= 1.
        parameters: coordinates that are trained.
        entropy: draws which, where somebody has more.

    Guarantees:
        One person more or less moves the sum by at most C, however many examples they have:
        tests/privacy/test_person_sensitivity.py::test_one_person_more_or_less_moves_the_sum_by_at_most_the_clip_norm.
        With one example for each person it is example-level DP-SGD, bit by bit:
        tests/privacy/test_persons.py::test_people_of_one_example_each_are_examples_bit_for_bit.
    """

    def __init__(
        self, of: GradientsOf, people: Sequence[Indices], *, most: int, parameters: int, entropy: Entropy
    ) -> None:
        self._of, self._people, self._most, self._entropy = of, people, most, entropy
        self._at_once = max(1, SUMS_BYTES // (8 * parameters))
        _expect_apart(people)

    def __len__(self) -> int:
        """People."""
        return len(self._people)

    def gradients(self, taken: Indices) -> Iterator[list[Tensor]]:
        """Of these people, one row for each; of whom no example has a gradient, none.

        Raises:
            TypeError: a bug that would break the promise: somebody twice, or more examples than allowed.
        """
        _expect_once(taken)
        for start in range(0, len(taken), self._at_once):
            yield from self._wave([self._chosen(self._people[int(p)]) for p in taken[start : start + self._at_once]])

    def _chosen(self, own: Indices) -> Indices:
        """A person's examples of this step, ascending."""
        if len(own) <= self._most:
            return own
        draws = np.frombuffer(self._entropy(8 * len(own)), "<u8")
        return np.sort(own[np.argsort(draws, kind="stable")[: self._most]])

    def _wave(self, chosen: Sequence[Indices]) -> Iterator[list[Tensor]]:
        _expect_few(chosen, self._most)
        place = {int(index): person for person, own in enumerate(chosen) for index in own}
        sums: dict[int, list[Tensor]] = {}
        for members, part in self._of(np.concatenate([np.zeros(0, np.int64), *chosen])):
            whose = [place[int(index)] for index in members]
            alone = [row for row, person in enumerate(whose) if len(chosen[person]) == 1]
            if alone:  # a mean of one: not added to zero, nor kept
                yield [gradient[alone] for gradient in part]
            for row, person in enumerate(whose):
                own = [gradient[row].double() for gradient in part]
                # An example whose gradient is not finite counts as zero, as under example-level privacy.
                if len(chosen[person]) == 1 or not all(bool(torch.isfinite(one).all()) for one in own):
                    continue
                sums[person] = (
                    own if person not in sums else [a.add_(b) for a, b in zip(sums[person], own, strict=True)]
                )
        for person, total in sums.items():
            yield [(one / len(chosen[person]))[None] for one in total]


def _expect_apart(people: Sequence[Indices]) -> None:
    """No example is of two people: it would count twice."""
    every = np.concatenate([np.zeros(0, np.int64), *people])
    if len(np.unique(every)) != len(every):
        raise TypeError("an example of two people")


def _expect_once(taken: Indices) -> None:
    """Nobody is in a step twice: they would move it by 2 C."""
    if len(np.unique(taken)) != len(taken):
        raise TypeError("a person twice in one step")


def _expect_few(chosen: Sequence[Indices], most: int) -> None:
    """Contributions are bounded."""
    if any(len(own) > most for own in chosen):
        raise TypeError(f"more than {most} examples of a person")
