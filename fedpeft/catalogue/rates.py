"""Learning rates that nobody set: what AdamW wants of a method's blocks, by what it changes in the model. No torch.

AdamW's step is the rate in every coordinate whatever the gradient, so the right rate is the one at which a step changes
the model by the right amount; it spans a factor of 30 over methods, ranks and matrices
(docs/adr/0019-learning-rates.md has the measurements and what they do not cover). Three things decide: what the method
trains, how many matrices it changes, and how much of the model sits above them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from fedpeft.adapter.spec import BlockSpec
from fedpeft.catalogue.section import Section

__all__ = ["UNMEASURED", "Placed", "both_factors", "head_rate", "low_rank", "per_matrix", "spread"]

UNMEASURED = 3e-3
"""Of methods whose best rate nobody measured here: what every block had before."""

_LAYER = re.compile(r"\.(\d+)\.")
_QUERY_KEY_VALUE = re.compile(r"\b(q|k|v|query|key|value|q_proj|k_proj|v_proj|qkv\w*|c_attn|query_key_value)\b")
_TOP = 2
"""Layers of a language model whose attention moves the logits little: nothing reads what it moves but the output."""
_BELOW, _OTHER = 3.0, 12.0
"""What attention matrices of lower layers weigh, and any other matrix of a language model, in those of the top layers:
from rates of 0.244, 0.177 and 0.048 on two, four and seven matrices (docs/adr/0019-learning-rates.md); on sixty from
runs of the product's own training, where the study's 0.014 is low by two (docs/adr/0035-measured-rates.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A block on a model.

    Args:
        block: with its tensors' names and shapes.
        language_model: whether every token's prediction counts, or one pooled feature's.
    """

    block: BlockSpec
    language_model: bool


def spread(placed: Placed) -> float:
    """By how much the rate falls because several matrices change at once: independent changes add up in squares.

    Example:
        >>> from fedpeft.adapter.spec import TensorSpec
        >>> names = [f"layer.{i}.{m}.B" for i in (28, 29) for m in ("q_proj", "v_proj")]
        >>> tensors = tuple(TensorSpec(name=name, shape=(4, 8)) for name in names)
        >>> block = BlockSpec(block_id="lora.B.t8", method="lora", tensors=tensors)
        >>> spread(Placed(block=block, language_model=False)), spread(Placed(block=block, language_model=True))
        (2.0, 2.0)
    """
    names = [tensor.name for tensor in placed.block.tensors]
    if not placed.language_model:
        return math.sqrt(len(names))
    layers = [int(found.group(1)) if (found := _LAYER.search(name)) else 0 for name in names]
    top = max(layers, default=0) - _TOP
    return math.sqrt(sum(_weight(name, at_top=layer > top) for name, layer in zip(names, layers, strict=True)))


def _weight(name: str, *, at_top: bool) -> float:
    if not _QUERY_KEY_VALUE.search(name):
        return _OTHER
    return 1.0 if at_top else _BELOW


def per_matrix(*, encoder: float, decoder: float) -> Callable[[Section, Placed], float]:
    """The rule of a method that adds as much to each of its tensors: the rate of one alone, over their ``spread``."""
    return lambda _, placed: (decoder if placed.language_model else encoder) / spread(placed)


def low_rank(placed: Placed, *, rank: int, scale: float) -> float:
    """Of B in ``scale * B A``, with rows of A of length 1: a step changes the output by about rate x scale x rank^0.6.

    Args:
        rank: the full one: devices of a lower tier train the same columns.
        scale: the factor of the product.
    """
    alone = 0.345 if placed.language_model else 0.043
    return alone * math.pow(8 / rank, 0.6) / scale / spread(placed)


def both_factors(placed: Placed, *, rank: int, scale: float) -> float:
    """Of a trained A: B's over the root of a row's length in coordinates, so that it turns by as much as B grows."""
    widths = [tensor.shape[-1] for tensor in placed.block.tensors]
    return scale * low_rank(placed, rank=rank, scale=scale) / math.sqrt(sum(widths) / len(widths))


def head_rate(*, measured: bool) -> float:
    """Of the class head: small steps near the class means, large ones from a random start.

    Args:
        measured: whether it starts from class means (docs/adr/0009-class-means.md).
    """
    return 3e-3 if measured else 3e-2
