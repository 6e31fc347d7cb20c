"""A batch of examples that hold two answers each, taken apart in front of the model and put together behind it.

An example is one row: the preferred answer behind its prompt, then the other one behind the same prompt
(``fedpeft.data.preference.tokens``). So everything that counts, sorts, cuts and caches examples knows them already.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.data.encode import IGNORED
from fedpeft.errors import RunFailed
from fedpeft.tuning.batches import Batch

__all__ = ["Sides", "joined", "parted", "sides_of"]


@dataclass(frozen=True, slots=True)
class Sides:
    """The answers of a batch as sequences of their own, ordered by example, the preferred one first.

    Args:
        batch: a language model's, one row an answer: (m, w), m <= 2 b.
        example: of each row, (m,).
        other: whether a row is an answer that is not preferred, (m,) of 0 and 1.
        columns: where each row's tokens stand in its example's row, (m, w).
    """

    batch: Batch
    example: Tensor
    other: Tensor
    columns: Tensor


def sides_of(batch: Batch, *, pad_id: int) -> Sides:
    """Take a batch of examples (``fedpeft.data.preference.tokens``) apart.

    Args:
        batch: with ``segments``: 1 on the other answer.
        pad_id: what both are padded with.
    """
    if batch.segments is None:
        raise RunFailed("Expected examples that say which tokens are of which answer, found none that do.")
    there = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    second = batch.segments * there
    sizes = torch.stack([(there - second).sum(1), second.sum(1)], dim=1)  # (b, 2)
    example, other = (sizes > 0).nonzero().unbind(1)  # (m,), by example, the preferred one first
    size, start = sizes[example, other], sizes[example, 0] * other
    width = int(size.max())
    place = torch.arange(width, device=size.device)
    inside = place < size[:, None]  # (m, w)
    columns = (start[:, None] + place).clamp(max=batch.input_ids.shape[1] - 1)
    rows = example[:, None]
    return Sides(
        batch=Batch(
            indices=batch.indices,
            input_ids=batch.input_ids[rows, columns].masked_fill(~inside, pad_id),
            attention_mask=None if bool(inside.all()) else inside.long(),
            labels=batch.labels[rows, columns].masked_fill(~inside, IGNORED),
        ),
        example=example,
        other=other,
        columns=columns,
    )


def parted(sides: Sides, hidden: Tensor) -> Tensor:
    """States of examples, (b, s, h), as those of their answers, (m, w, h); 0 on padding."""
    found = hidden[sides.example[:, None], sides.columns]
    mask = sides.batch.attention_mask
    return found if mask is None else found * mask[..., None].to(found.dtype)


def joined(sides: Sides, hidden: Tensor, width: int) -> Tensor:
    """The inverse of ``parted``: (m, w, h) -> (b, width, h)."""
    mask = sides.batch.attention_mask
    chosen = torch.ones_like(sides.columns, dtype=torch.bool) if mask is None else mask.bool()
    rows = sides.example[:, None].expand_as(sides.columns)
    whole = hidden.new_zeros(len(sides.batch.indices), width, hidden.shape[-1])
    whole[rows[chosen], sides.columns[chosen]] = hidden[chosen]
    return whole
