"""Questions to a model with outputs of its own, as batches of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedpeft.base import BaseArtifact, load_model
from fedpeft.data import EncodedDataset
from fedpeft.tasks.form import TEXT
from fedpeft.tuning.batches import padded
from fedpeft.tuning.preference.losses import with_reference
from fedpeft_client.inference.outputs import Offsets

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Encoded", "encoded", "with_base_s_own"]

ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Some questions as a model takes them.

    Args:
        rows: which of the questions.
        inputs: the model's arguments, (b, s) each.
        texts: of each row what the tokenizer took: one text or two.
        offsets: of each row's tokens; empty unless they were asked for.
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    texts: list[tuple[str, ...]]
    offsets: list[Offsets]


def encoded(
    texts: Sequence[tuple[str, ...]],
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
    longest: Sequence[int],
    *,
    offsets: bool,
) -> Iterator[Encoded]:
    """Batches of 32 texts alike in length.

    Args:
        texts: one text each, or the two of a pair.
        tokenizer: the base's.
        config: the model's.
        longest: tokens at which each is cut.
        offsets: whether they are wanted.
    """
    found = [
        tokenizer(*one, truncation=True, max_length=length, return_offsets_mapping=offsets)
        for one, length in zip(texts, longest, strict=True)
    ]
    pad = getattr(config, "pad_token_id", None) or 0  # as in training (fedpeft.tuning.batches)
    has_segments = int(getattr(config, "type_vocab_size", 0) or 0) > 1
    order = sorted(range(len(texts)), key=lambda row: len(found[row]["input_ids"]))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        some = [found[row] for row in rows]
        ids = [one["input_ids"] for one in some]
        inputs = {
            "input_ids": torch.from_numpy(padded(ids, pad)),
            "attention_mask": torch.from_numpy(padded([[1] * len(one) for one in ids], 0)),
        }
        if has_segments and any(len(texts[row]) > 1 for row in rows) and "token_type_ids" in some[0]:
            inputs["token_type_ids"] = torch.from_numpy(padded([one["token_type_ids"] for one in some], 0))
        spans = [one["offset_mapping"] if offsets else () for one in some]
        yield Encoded(rows=rows, inputs=inputs, texts=[texts[row] for row in rows], offsets=spans)


def with_base_s_own(examples: EncodedDataset, artifact: BaseArtifact) -> EncodedDataset:
    """Answers to be compared with what the base says of them; other examples as they are."""
    if examples.preference is None:
        return examples
    return with_reference(examples, load_model(artifact, task=TEXT, labels=(), head_seed=0, residency="quantized"))
