"""A batch of examples that hold several texts each, taken apart in front of the model and put together behind it.

An example is one row: the preferred answer behind its prompt, then the other one behind the same prompt
(``fedpeft.data.preference.tokens``); or an anchor, the text that belongs to it, in triplets one that does not
(``fedpeft.data.together.tokens``). So everything that counts, sorts, cuts and caches examples knows them already.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.data.encode import IGNORED
from fedpeft.errors import RunFailed
from fedpeft.tuning.batches import Batch

MOST = 3
"""Texts of an example."""

__all__ = ["Sides", "joined", "parted", "sides_of"]


@dataclass(frozen=True, slots=True)
class Sides:
    """The texts of a batch as sequences of their own, ordered by example and within one as in its row.

    Args:
        batch: one row per text: (m, w). Labels are of its tokens, as a language model's; of examples without labels of
            tokens 0, (m,).
        example: of each row, (m,).
        other: which of its example's texts a row is, (m,): 1 on an answer that is not preferred, else 0; of texts that
            belong together 0 on the anchor, 1 on the positive, 2 on the negative one.
        columns: where each row's tokens stand in its example's row, (m, w).
    """

    batch: Batch
    example: Tensor
    other: Tensor
    columns: Tensor


def sides_of(batch: Batch, *, pad_id: int) -> Sides:
    """Take a batch of examples (``fedpeft.data.preference.tokens``) apart.

    Args:
        batch: with ``segments``: which of the example's texts a token is of.
        pad_id: what both are padded with.
    """
    if batch.segments is None:
        raise RunFailed("Expected examples that say which tokens are of which text, found none that do.")
    there = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    kinds = torch.arange(MOST, device=there.device)
    sizes = ((batch.segments[..., None] == kinds) * there[..., None]).sum(1)  # (b, MOST)
    example, other = (sizes > 0).nonzero().unbind(1)  # (m,), by example
    size, start = sizes[example, other], (sizes.cumsum(1) - sizes)[example, other]
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
            labels=batch.labels[rows, columns].masked_fill(~inside, IGNORED)
            if batch.labels.dim() == 2
            else batch.labels[example],
        ),
        example=example,
        other=other,
        columns=columns,
    )


def parted(sides: Sides, hidden: Tensor) -> Tensor:
    """States of examples, (b, s, h), as those of their texts, (m, w, h); 0 on padding."""
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
