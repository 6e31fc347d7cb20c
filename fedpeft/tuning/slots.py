"""Batches of fixed shapes: what is computed for an example depends on that example alone, to the last bit.

A matrix product rounds differently in batches of another shape, and a hostile adapter state amplifies the difference
without a limit: the clipped gradients of an example's *neighbours* moved with it, and the sum by 2.08 C instead of C
(docs/privacy.md, "What one example moves"). So a private step computes every example in a shape that follows from its
own length:

- it is padded to a multiple of ``WIDTH``, its shape's width;
- a batch has as many slots as its width and the step's size allow, whoever is in them; empty ones hold a made-up token;
- an example as long as its width shares no batch with padded ones: models leave the mask out where nothing is padded.

What is left is that an example's slot must not matter, nor what the other slots hold. That is a property of the
kernels, and ``fedpeft.tuning.per_example_gradients`` checks it bit by bit before it uses a shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedpeft.data.encode import EncodedDataset
from fedpeft.tuning.batches import Batch, Indices, padded_labels, padded_segments

__all__ = ["CELLS", "WIDTH", "Shape", "fixed_batch", "pieces", "shape_of"]

WIDTH = 8
"""Widths are multiples of it."""

CELLS = 512
"""Most tokens of a batch. MiniLM int8, LoRA, 32 x 64, one thread: 1.00 of the time of a batch of 2,048 with 1,024 or
512, 1.12 with 256, 1.33 with 128, 1.5 one example at a time."""

EMPTY = 8
"""A batch has at most so small a part of the slots of a step, so that few are empty. Texts of 14 to 52 tokens (5 % to
95 %) cost 1.8, 2.1 and 1.3 times their tokens in steps of 32, 128 and 1,024; batches of the whole step, padded to its
longest, cost 1.8, 1.9 and 1.9."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What an example is computed in.

    Args:
        width: tokens of a row.
        full: whether the example is as long, so that nothing of its row is padded.
        slots: rows of the batch.
    """

    width: int
    full: bool
    slots: int

    @property
    def length(self) -> int:
        """Of the longest example that has this shape."""
        return self.width if self.full else self.width - 1


def shape_of(length: int, *, most: int, longest: int) -> Shape:
    """The shape of an example.

    Args:
        length: its tokens, at most ``longest``.
        most: examples that may be in memory at once.
        longest: positions that the model has.

    Example:
        >>> shape_of(61, most=32, longest=512)
        Shape(width=64, full=False, slots=4)
    """
    width = max(min(-(-length // WIDTH) * WIDTH, longest), length, 1)
    return Shape(width, width == length, max(1, min(most, CELLS // width, max(2, most // EMPTY))))


def pieces(
    indices: Indices, lengths: npt.NDArray[np.int64], *, most: int, longest: int
) -> Iterator[tuple[Shape, Indices]]:
    """These examples by shape, never more than its slots at once.

    Shapes ascend, and examples within a shape: which of two comes first depends on no other.
    """
    found: dict[Shape, list[int]] = {}
    for index in sorted(map(int, indices)):
        found.setdefault(shape_of(int(lengths[index]), most=most, longest=longest), []).append(index)
    for shape, members in sorted(found.items()):
        for start in range(0, len(members), shape.slots):
            yield shape, np.array(members[start : start + shape.slots], np.int64)


def fixed_batch(
    examples: EncodedDataset, indices: Indices, shape: Shape, *, pad_id: int, device: torch.device
) -> Batch:
    """These examples in the first slots of their shape; ``Batch.indices`` has theirs alone."""
    input_ids = np.full((shape.slots, shape.width), pad_id, np.int64)
    mask = np.zeros((shape.slots, shape.width), np.int64)
    mask[:, 0] = 1  # a row of nothing but padding would divide by zero
    for row, index in enumerate(indices):
        ids = examples.input_ids[index]
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return Batch(
        indices=indices,
        input_ids=torch.from_numpy(input_ids).to(device),
        attention_mask=None if shape.full else torch.from_numpy(mask).to(device),
        labels=torch.from_numpy(padded_labels(examples, indices, shape.slots, shape.width)).to(device),
        segments=padded_segments(examples, indices, shape.slots, shape.width, device),
    )
