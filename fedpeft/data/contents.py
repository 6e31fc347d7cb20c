"""Which records have the same content, and which contents are held out, of more records than memory holds.

A content is known by its rank: 64 bits of a hash (``fedpeft.data.holdout``). Records are dealt to buckets by the first
bits of their ranks, on the disk beyond ``MEMORY_BYTES``; a bucket holds each of its contents whole and is looked at
alone, in pieces. So memory holds one bucket's distinct contents, the classes' names, and a byte a record.

Which contents are held out: of each class the first by rank, so that every class gives about its share. The position
of the ``i``-th content of a class of ``n`` is (i + 1/2) / n, and those with the first positions over all classes are
held out, by rank where positions are equal.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedpeft.data.packed import PagedNumbers, Pages

__all__ = ["Division", "Ranks", "divide"]

MEMORY_BYTES = 32 * 2**20
BUCKET_ROWS = 2**18
"""Of a bucket, about: ranks are hashes, and so spread evenly."""

Ranks = npt.NDArray[np.uint64]
"""A number a record: the first 64 bits of a hash of its content and the seed. Equal contents have equal ranks."""

DEALT_ROWS = 2**16

Codes = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

ROW = np.dtype([("rank", np.uint64), ("row", np.uint32), ("label", np.uint32)])
CONTENT = np.dtype([("rank", np.uint64), ("group", np.uint32)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The records on two sides.

    Args:
        held: which are held out, shape (n,).
        distinct: contents.
        contradictions: contents with more than one name.
        shared: contents on both sides.
    """

    held: Mask
    distinct: int
    contradictions: int
    shared: int


def divide(
    count: int, parts: Iterable[tuple[Ranks, Codes]], tables: Callable[[], tuple[Codes, Codes]], holdout: float
) -> Division:
    """Hold a share of the contents out.

    Args:
        count: records.
        parts: their ranks and a code of each one's label, some at a time.
        tables: called when all parts were given: for each code its class, ascending by name (a content whose records
            disagree has the first), and its name's number, by which labels contradict each other.
        holdout: the share of the distinct contents.
    """
    pages = Pages(MEMORY_BYTES)
    bits = max(0, (count // BUCKET_ROWS).bit_length())
    buckets = [PagedNumbers(ROW, pages) for _ in range(2**bits)]
    _deal(parts, buckets, bits)
    group_of, name_of = tables()
    sizes = np.zeros(int(group_of.max(initial=0)) + 1, np.int64)
    found, contradictions = [PagedNumbers(CONTENT, pages) for _ in buckets], 0
    for bucket, contents in zip(buckets, found, strict=True):
        merged = _merged(bucket, group_of, name_of)
        contents.extend(merged.contents)
        contradictions += merged.contradictions
        sizes += np.bincount(merged.contents["group"], minlength=len(sizes))
    held = np.zeros(count, np.bool_)
    distinct, shared = int(sizes.sum()), 0
    chooser = _Chooser(sizes, min(max(round(holdout * distinct), 1), max(distinct - 1, 0)))
    for bucket, contents in zip(buckets, found, strict=True):
        ranks, chosen = _chosen(contents, chooser)
        both = np.zeros((2, len(ranks)), np.bool_)
        for rows in bucket.windows(BUCKET_ROWS):
            place = np.searchsorted(ranks, rows["rank"])
            held[rows["row"]] = chosen[place]
            both[chosen[place].astype(np.intp), place] = True
        shared += int(np.count_nonzero(both.all(axis=0)))
    return Division(held=held, distinct=distinct, contradictions=contradictions, shared=shared)


def _deal(parts: Iterable[tuple[Ranks, Codes]], buckets: list[PagedNumbers[np.void]], bits: int) -> None:
    """Lay every record into the bucket of its rank's first bits."""
    row = 0
    waiting: list[npt.NDArray[np.void]] = []

    def lay() -> None:
        some = np.concatenate(waiting) if waiting else np.zeros(0, ROW)
        waiting.clear()
        number = (some["rank"] >> np.uint64(64 - bits)).astype(np.intp) if bits else np.zeros(len(some), np.intp)
        order = np.argsort(number, kind="stable")
        begins = np.searchsorted(number[order], np.arange(len(buckets) + 1))
        for bucket, (begin, end) in zip(buckets, pairwise(begins.tolist()), strict=True):
            if begin < end:
                bucket.extend(some[order[begin:end]])

    for ranks, labels in parts:
        rows = np.empty(len(ranks), ROW)
        rows["rank"], rows["label"], rows["row"] = ranks, labels, np.arange(row, row + len(ranks))
        row += len(ranks)
        waiting.append(rows)
        if sum(map(len, waiting)) >= DEALT_ROWS:
            lay()
    lay()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merged:
    """A bucket's distinct contents, ascending by rank, and how many of them have several names."""

    contents: npt.NDArray[np.void]
    contradictions: int


def _merged(bucket: PagedNumbers[np.void], group_of: Codes, name_of: Codes) -> _Merged:
    """Of each content its class: the first by name where records disagree."""
    ranks, group, low, high = np.zeros(0, np.uint64), *(np.zeros(0, np.uint32) for _ in range(3))
    for rows in bucket.windows(BUCKET_ROWS):
        names = name_of[rows["label"]]
        ranks = np.concatenate([ranks, rows["rank"]])
        group = np.concatenate([group, group_of[rows["label"]]])
        low, high = np.concatenate([low, names]), np.concatenate([high, names])
        order = np.argsort(ranks, kind="stable")
        ranks = ranks[order]
        begins = np.flatnonzero(np.concatenate([[True], ranks[1:] != ranks[:-1]]))
        ranks = ranks[begins]
        group = np.minimum.reduceat(group[order], begins)
        low, high = np.minimum.reduceat(low[order], begins), np.maximum.reduceat(high[order], begins)
    contents = np.empty(len(ranks), CONTENT)
    contents["rank"], contents["group"] = ranks, group
    return _Merged(contents=contents, contradictions=int(np.count_nonzero(low != high)))


@dataclass(slots=True)
class _Chooser:
    """Which contents are held out, asked in the order of their ranks.

    Args:
        sizes: contents of each class.
        wanted: contents to hold out.
    """

    sizes: npt.NDArray[np.int64]
    wanted: int
    last: float = field(init=False, default=-1.0)
    ties: int = field(init=False, default=0)
    seen: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.sizes), np.int64)
        if self.wanted:
            self.last = self._last()
            self.ties = self.wanted - self._count(float(np.nextafter(self.last, -1.0)))

    def of(self, groups: Codes) -> Mask:
        """Whether each of the next contents is held out; ``groups`` are their classes."""
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups, minlength=len(self.sizes))
        begins = np.cumsum(sizes) - sizes
        position = np.empty(len(groups))
        mine = groups[order]
        within = np.arange(len(groups)) - begins[mine] + self.seen[mine]
        position[order] = (within + 0.5) / self.sizes[mine]
        self.seen += sizes
        held: Mask = position < self.last
        tied = np.flatnonzero(position == self.last)[: self.ties]
        held[tied] = True
        self.ties -= len(tied)
        return held

    def _last(self) -> float:
        """The position of the last content that is held out: the least up to which there are enough."""
        low, high = 0, int(np.float64(1.0).view(np.int64))  # positive floats ascend as their bits do
        while low < high:
            middle = (low + high) // 2
            if self._count(float(np.int64(middle).view(np.float64))) >= self.wanted:
                high = middle
            else:
                low = middle + 1
        return float(np.int64(low).view(np.float64))

    def _count(self, position: float) -> int:
        """How many contents have this position or one before it."""
        sizes, classes = np.unique(self.sizes[self.sizes > 0], return_counts=True)
        count = np.clip(np.floor(position * sizes + 0.5), 0, sizes)  # about: the division rounds
        count -= (count > 0) & ((count - 0.5) / sizes > position)
        count += (count < sizes) & ((count + 0.5) / sizes <= position)
        return int((count.astype(np.int64) * classes).sum())


def _chosen(contents: PagedNumbers[np.void], chooser: _Chooser) -> tuple[Ranks, Mask]:
    """A bucket's distinct ranks, and which of them are held out."""
    whole = contents.window(0, len(contents))
    return np.ascontiguousarray(whole["rank"]), chooser.of(whole["group"])
