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
from fedpeft.errors import ConfigInvalid
from fedpeft.tuning.batches import Batch

__all__ = ["TwoStacks", "shifted_right", "two_stacks"]


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
    return TwoStacks(
        input_ids=pad_sequence(sources, batch_first=True, padding_value=pad_id),
        attention_mask=pad_sequence([torch.ones_like(row) for row in sources], batch_first=True),
        decoder_input_ids=shifted_right(model, labels),
        labels=labels,
    )


def shifted_right(model: nn.Module, labels: Tensor) -> Tensor:
    """Targets as the decoder reads them: each token one place later, behind the token that begins every target.

    Args:
        model: an encoder-decoder of transformers. Where its class has no rule of its own, the one that its forward
            pass applies to labels.
        labels: (b, t) int64, ``IGNORED`` behind the ends.

    Raises:
        ConfigInvalid: its config.json names no such token.
    """
    made: Any = model
    if hasattr(made, "prepare_decoder_input_ids_from_labels"):
        return cast("Tensor", made.prepare_decoder_input_ids_from_labels(labels=labels))
    begin, pad = made.config.decoder_start_token_id, made.config.pad_token_id
    if begin is None or pad is None:
        raise ConfigInvalid(
            f"Expected decoder_start_token_id and pad_token_id in the config.json of {type(model).__name__}, found "
            f"{begin} and {pad}; add them, as generation_config.json has them."
        )
    shifted = nn.functional.pad(labels[:, :-1], (1, 0), value=int(begin))
    return shifted.masked_fill(shifted == IGNORED, int(pad))
