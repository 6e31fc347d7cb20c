"""Holding contents out bucket by bucket is what sorting all of them at once gives."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data import Records, contents, split_holdout
from fedpeft.data.contents import divide
from fedpeft.data.packed import paged

Rows = list[tuple[int, int]]
RANKS = st.integers(0, 40).map(lambda number: number * (2**64 // 41)) | st.integers(0, 2**64 - 1)
ROWS = st.lists(st.tuples(RANKS, st.integers(0, 5)), max_size=80)
GROUPS, NAMES = [0, 0, 1, 2, 3, 3], [0, 1, 2, 2, 3, 4]


def in_parts(rows: Rows, size: int) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]]:
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield np.array([rank for rank, _ in some], np.uint64), np.array([code for _, code in some], np.uint32)


def plainly(rows: Rows, holdout: float) -> tuple[list[bool], int, int]:
    """By the definition: which are held out, how many contents, how many with several names."""
    group: dict[int, int] = {}
    names: dict[int, set[int]] = {}
    for rank, code in rows:
        group[rank] = min(group.get(rank, 99), GROUPS[code])
        names.setdefault(rank, set()).add(NAMES[code])
    members: dict[int, list[int]] = {}
    for rank in sorted(group):
        members.setdefault(group[rank], []).append(rank)
    position = {
        rank: (place + 0.5) / len(ranks) for ranks in members.values() for place, rank in enumerate(ranks)
    }  # fmt: skip
    wanted = min(max(round(holdout * len(group)), 1), max(len(group) - 1, 0))
    held = set(sorted(group, key=lambda rank: (position[rank], rank))[:wanted])
    return [rank in held for rank, _ in rows], len(group), sum(len(some) > 1 for some in names.values())


@given(ROWS, st.floats(0.01, 0.99), st.integers(1, 9), st.integers(1, 40))
def test_buckets_on_the_disk_give_what_sorting_everything_gives(
    rows: Rows, holdout: float, size: int, bucket: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "BUCKET_ROWS", bucket)
        patch.setattr(contents, "DEALT_ROWS", 5)
        patch.setattr(contents, "MEMORY_BYTES", 0)
        patch.setattr(paged, "PAGE_BYTES", 32)
        tables = np.array(GROUPS, np.uint32), np.array(NAMES, np.uint32)
        found = divide(len(rows), in_parts(rows, size), lambda: tables, holdout)
    assert (found.held.tolist(), found.distinct, found.contradictions) == plainly(rows, holdout)
    assert found.shared == 0


def test_a_content_that_nearly_all_rows_have_is_one() -> None:
    rows = [(7, 0)] * 50 + [(2**63, 1)]
    tables = np.zeros(6, np.uint32), np.zeros(6, np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "BUCKET_ROWS", 4)
        found = divide(len(rows), in_parts(rows, 6), lambda: tables, 0.2)
    assert (found.distinct, int(found.held.sum())) == (2, 50)


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", 1, 1.0, True, None]), min_size=2, max_size=60))
def test_the_split_is_that_of_the_first_version(labels: list[object]) -> None:
    """The seed's split of a run is made again on resuming it: by the definition that runs of 2026 began with."""
    rows: list[dict[str, object]] = [{"text": f"t {i % 23}", "label": label} for i, label in enumerate(labels)]
    from fedpeft.data.holdout import _ranks

    ranks = np.concatenate([*_ranks(Records.of(rows), 5)]).tolist()
    names = sorted({str(label) for label in labels})
    group: dict[int, int] = {}
    for rank, label in zip(ranks, labels, strict=True):
        group[rank] = min(group.get(rank, len(names)), names.index(str(label)))
    ordered = sorted(group)
    place: dict[int, float] = {}
    for one in range(len(names)):
        mine = [rank for rank in ordered if group[rank] == one]
        place.update({rank: (i + 0.5) / len(mine) for i, rank in enumerate(mine)})
    wanted = min(max(round(0.3 * len(ordered)), 1), max(len(ordered) - 1, 0))
    held = set(sorted(ordered, key=lambda rank: (place[rank], rank))[:wanted])
    _, found = split_holdout(Records.of(rows), 0.3, 5)
    assert [row["text"] for row in found] == [
        row["text"] for row, rank in zip(rows, ranks, strict=True) if rank in held
    ]
