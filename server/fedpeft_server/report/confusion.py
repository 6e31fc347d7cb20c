"""Which classes are taken for which: the matrix of a simulation's kept state on all held-out examples."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.tasks.measure import f1
from fedpeft_server.report.formats import share

__all__ = ["ConfusedClass", "Mixup", "Mixups", "mixups_of"]

MOST = 5
"""So many of the commonest mix-ups are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedClass:
    """A row of the matrix.

    Args:
        name: of the class that is true.
        cells: how many examples were given each class, with their share of this row.
        examples: of this class.
        recall: of these examples the share that is right; a dash without one.
        precision: of all that were given this class the share of which it is true.
        f1: of the two.
    """

    name: str
    cells: tuple[tuple[int, float], ...]
    examples: int
    recall: str
    precision: str
    f1: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixup:
    """So many examples of one class that were given another."""

    truth: str
    answer: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixups:
    """The matrix and what stands out in it."""

    names: tuple[str, ...]
    rows: tuple[ConfusedClass, ...]
    commonest: tuple[Mixup, ...]


def mixups_of(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Mixups | None:
    """None without a matrix of these classes.

    Args:
        matrix: (truth, answer), counts.
        names: of the classes.
    """
    if not names or len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        return None
    given = [sum(row[place] for row in matrix) for place in range(len(names))]
    rows = []
    for place, (name, row) in enumerate(zip(names, matrix, strict=True)):
        right, examples = row[place], sum(row)
        rows.append(
            ConfusedClass(
                name=name,
                cells=tuple((cell, cell / examples if examples else 0.0) for cell in row),
                examples=examples,
                recall=share(right / examples if examples else None),
                precision=share(right / given[place] if given[place] else None),
                f1=share(f1(right, given[place] - right, examples - right)),
            )
        )
    wrong = [
        Mixup(truth=names[i], answer=names[j], count=count)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    wrong.sort(key=lambda one: -one.count)
    return Mixups(names=tuple(names), rows=tuple(rows), commonest=tuple(wrong[:MOST]))
