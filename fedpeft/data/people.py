"""Whose a row is: the column ``person``, as numbers that name nobody.

Under ``privacy.unit = "person"`` rows of one person are one unit. The names stay in the records; what training sees of
them is a hash of 64 bits, and neither is logged or sent. Two names that hash alike are one unit, which holds both.

Guarantees:
    a row whose person is missing belongs to nobody, and nobody is trained on
    (tests/data/test_people.py::test_a_row_without_a_person_is_nobodys);
    a person is on one side of the split, and moves no other (test_a_person_moves_no_other_between_the_sides).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.data.records import ProblemLog, Records
from fedpeft.data.remarks import means_missing
from fedpeft.data.targets import label_name
from fedpeft.errors import DataInvalid

__all__ = [
    "NOBODY",
    "PERSON",
    "Owners",
    "People",
    "count_people",
    "note_nobodys",
    "owners_of",
    "people_in",
    "split_people",
]

PERSON = "person"
"""Our name of the column; ``data.map`` says theirs."""

NOBODY = 0

Owners = npt.NDArray[np.uint64]
"""A number per row, shape (n,): equal for rows of one person, ``NOBODY`` for a row without one."""

PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """How a data set's rows are spread over people.

    Args:
        count: people.
        nobodys: rows without one.
        percentiles: percent -> rows of a person; 100 is the most that one has.
    """

    count: int
    nobodys: int
    percentiles: dict[int, int]


def owners_of(records: Records) -> Owners | None:
    """Whose each row is; None where the data names no people."""
    if PERSON not in records.columns():
        return None
    return np.fromiter(map(_number, records.values(PERSON)), np.uint64, len(records))


def count_people(records: Records) -> int:
    """How many people the rows are of."""
    owners = owners_of(records)
    return 0 if owners is None else len(np.unique(owners[owners != NOBODY]))


def people_in(records: Records) -> People | None:
    """How the rows are spread; None where the data names no people."""
    owners = owners_of(records)
    if owners is None:
        return None
    _, sizes = np.unique(owners[owners != NOBODY], return_counts=True)
    found = np.percentile(sizes, PERCENTILES, method="higher") if len(sizes) else np.zeros(0)
    return People(
        count=len(sizes),
        nobodys=int((owners == NOBODY).sum()),
        percentiles={percent: int(rows) for percent, rows in zip(PERCENTILES, found, strict=False)},
    )


def note_nobodys(records: Records, log: ProblemLog) -> None:
    """Notes every row without a person, by file and line; the column's absence too."""
    owners = owners_of(records)
    if owners is None:
        remedy = "Name the column of the person with data.map, e.g. map = {person = 'patient'}."
        log.add("columns", f"a column {PERSON}", "none", remedy)
        return
    for index in np.flatnonzero(owners == NOBODY):
        log.add(
            f"{records.origins[int(index)]}: {PERSON}", "whose row this is", "nothing", "Fill it or remove the row."
        )


def split_people(records: Records, holdout: float, seed: int) -> tuple[Records, Records]:
    """``(train, held_out)``, each in the order of ``records``; a person's rows are all on one side.

    Args:
        records: of one client, with the column ``person``; nobody's rows are on neither side.
        holdout: how likely a person is held out, 0 < holdout < 1.
        seed: the run's.

    Raises:
        DataInvalid: ``holdout`` is out of range.
    """
    if not 0 < holdout < 1:
        raise DataInvalid(f"Expected 0 < holdout={holdout} < 1; give the share to hold out, e.g. 0.2.")
    owners = owners_of(records)
    if owners is None:
        return records.select(()), records.select(())
    distinct, place = np.unique(owners, return_inverse=True)
    begun, limit = f"fedpeft/1 holdout {seed} person ".encode(), min(int(holdout * 2.0**64), 2**64 - 1)
    held = np.array([_first(begun + int(owner).to_bytes(8, "big")) < limit for owner in distinct], np.bool_)[place]
    somebodys = owners != NOBODY
    train, held_out = np.flatnonzero(somebodys & ~held), np.flatnonzero(somebodys & held)
    return records.select(train.tolist()), records.select(held_out.tolist())


def _number(value: object) -> int:
    """A missing value that a program wrote out ("nan") is no name: all such rows together would be one person."""
    name = label_name(value)
    if name is None or means_missing(name):
        return NOBODY
    return _first(b"fedpeft/1 person " + name.encode("utf-8", "surrogatepass")) or 1


def _first(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
