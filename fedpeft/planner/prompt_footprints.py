"""What prompts and prefixes add to a layer (see ``fedpeft.planner.placement``)."""

from fedpeft.config.prompts import LlamaAdapter, Prefix, Prompt, PTuning, PTuningV2
from fedpeft.ids import BlockId
from fedpeft.planner.counts import Footprint
from fedpeft.planner.read_shape import BaseShape

__all__ = ["llama_adapter", "p_tuning", "p_tuning_v2", "prefix", "prompt"]


def prompt(shape: BaseShape, settings: Prompt) -> Footprint:
    """Rows before the input: they cost what tokens cost."""
    block = BlockId("prompt")
    return Footprint(blocks={block: 0}, shared={block: settings.length * shape.hidden}, tokens=settings.length)


def p_tuning(shape: BaseShape, settings: PTuning) -> Footprint:
    """As ``prompt``, with the encoder's table and three matrices."""
    block, wide, narrow = BlockId("p_tuning"), shape.hidden, settings.width
    size = settings.length * wide + 2 * wide * narrow + narrow * narrow + 2 * narrow + wide
    return Footprint(blocks={block: 0}, shared={block: size}, tokens=settings.length)


def prefix(shape: BaseShape, settings: Prefix) -> Footprint:
    """The trunk once, a matrix a layer; attention keeps its longer keys and values."""
    block, narrow, rows = BlockId("prefix"), settings.width, 2 * shape.key_width
    return Footprint(
        blocks={block: rows * (narrow + 1)},
        shared={block: shape.hidden * (settings.length + narrow) + narrow},
        saved=rows,
        saved_first_token=rows,
        flops=4 * settings.length * shape.hidden,
    )


def p_tuning_v2(shape: BaseShape, settings: PTuningV2) -> Footprint:
    """Keys and values of a layer; attention keeps its longer keys and values."""
    rows = 2 * shape.key_width
    return Footprint(
        blocks={BlockId("p_tuning_v2"): settings.length * rows},
        saved=rows,
        saved_first_token=rows,
        flops=4 * settings.length * shape.hidden,
    )


def llama_adapter(shape: BaseShape, settings: LlamaAdapter) -> Footprint:
    """A prompt and a gate a layer; keeps the scores of the second attention and what the gate multiplies."""
    return Footprint(
        blocks={BlockId("llama_adapter"): settings.length * shape.hidden + 1},
        saved=settings.length * shape.heads + shape.hidden,
        flops=4 * settings.length * shape.hidden,
    )
