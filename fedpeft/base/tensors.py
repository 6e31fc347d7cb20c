"""A tensor that is read by rows, so that no step of a build needs the whole of a large one in memory.

A checkpoint's tensors, what transformers makes of several of them, and what a GGUF file holds all look the same
from here on: a shape, a type, and rows along the first dimension.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SLAB_ELEMENTS", "RowTensor", "equal", "matrix_rows", "row_slabs"]

# A quarter of a million: 1 MiB in float32. The quantizers pass over a slab several times, in the processor's cache.
SLAB_ELEMENTS = 2**18


@dataclass(frozen=True, slots=True)
class RowTensor:
    """A tensor that need not be in memory.

    Args:
        shape: its dimensions; ``()`` is one row.
        dtype: of what ``read`` returns.
        read: rows ``start`` to ``stop`` along the first dimension, with all other dimensions.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @staticmethod
    def of(tensor: Tensor) -> "RowTensor":
        """A tensor that is in memory."""
        return RowTensor(
            tuple(tensor.shape), tensor.dtype, lambda start, stop: tensor[start:stop] if tensor.ndim else tensor
        )

    def whole(self) -> Tensor:
        """All rows: for small tensors, and for tests."""
        return self.read(0, self.rows)


def row_slabs(shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover a tensor, each about ``SLAB_ELEMENTS``; but the last, multiples of ``multiple`` rows.

    >>> list(row_slabs((10, 2**20), multiple=3))
    [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    rows = shape[0] if shape else 1
    wanted = max(1, SLAB_ELEMENTS // max(1, math.prod(shape[1:])))
    step = max(multiple, wanted - wanted % multiple)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def equal(one: RowTensor, other: RowTensor) -> bool:
    """Whether two tensors hold the same values, whatever their types."""
    if one.shape != other.shape:
        return False
    return all(torch.equal(one.read(*rows).float(), other.read(*rows).float()) for rows in row_slabs(one.shape))


def matrix_rows(stack: RowTensor) -> RowTensor:
    """A tensor of three dimensions as the rows of its matrices, one matrix in memory at a time.

    >>> rows = matrix_rows(RowTensor.of(torch.arange(12).view(2, 3, 2)))
    >>> rows.shape, rows.read(2, 4).tolist()
    ((6, 2), [[4, 5], [6, 7]])
    """
    count, each, columns = stack.shape
    last: dict[int, Tensor] = {}

    def matrix(index: int) -> Tensor:
        if index not in last:
            last.clear()
            last[index] = stack.read(index, index + 1)[0]
        return last[index]

    def read(start: int, stop: int) -> Tensor:
        pieces = [
            matrix(index)[max(start - index * each, 0) : min(stop - index * each, each)]
            for index in range(start // each, (stop - 1) // each + 1)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    return RowTensor((count * each, columns), stack.dtype, read)
