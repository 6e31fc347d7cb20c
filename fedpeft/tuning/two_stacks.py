"""An encoder-decoder's inputs, of examples that hold source and target in one row.

An example is a row of tokens with a label on each token of the target and ``IGNORED`` on the source, as for a language
model that is trained on completions alone. So everything that counts, sorts, cuts and caches examples knows them
already; here, in front of the model, the row comes apart.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedpeft.data.encode import IGNORED
from fedpeft.tuning.batches import Batch

__all__ = ["TwoStacks", "two_stacks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStacks:
    """What an encoder-decoder is called with.

    Args:
        input_ids: the sources, (b, s) int64.
        attention_mask: (b, s) int64, 1 on tokens.
        decoder_input_ids: the targets, shifted to the right behind the model's start token, (b, t) int64.
        labels: the targets, (b, t) int64, ``IGNORED`` behind their ends: position i is predicted by output i.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor
    labels: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """By the names that transformers gives them; behind its end a target is seen by nothing that counts."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "decoder_input_ids": self.decoder_input_ids,
        }


def two_stacks(model: nn.Module, batch: Batch, *, pad_id: int) -> TwoStacks:
    """Take the rows of a batch apart.

    Args:
        model: an encoder-decoder of transformers, which knows how its targets begin.
        batch: rows of source and target, the target labelled.
        pad_id: what both are padded with.
    """
    there = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    target = batch.labels != IGNORED  # (b, s)
    source = there.bool() & ~target
    sources = [row[chosen] for row, chosen in zip(batch.input_ids, source, strict=True)]
    targets = [row[chosen] for row, chosen in zip(batch.labels, target, strict=True)]
    labels = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
    made: Any = model
    return TwoStacks(
        input_ids=pad_sequence(sources, batch_first=True, padding_value=pad_id),
        attention_mask=pad_sequence([torch.ones_like(row) for row in sources], batch_first=True),
        decoder_input_ids=cast("Tensor", made.prepare_decoder_input_ids_from_labels(labels=labels)),
        labels=labels,
    )
