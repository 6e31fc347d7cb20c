"""What prompts and prefixes add to a layer (see ``fedpeft.device.footprint``)."""

from fedpeft.config.model import Adapter
from fedpeft.device.counts import Footprint
from fedpeft.device.shape import BaseShape
from fedpeft.ids import BlockId

__all__ = ["llama_adapter", "p_tuning", "p_tuning_v2", "prefix", "prompt"]


def prompt(shape: BaseShape, adapter: Adapter) -> Footprint:
    """Rows before the input: they cost what tokens cost."""
    settings = adapter.prompt
    if settings is None:
        return Footprint(blocks={})
    block = BlockId("prompt")
    return Footprint(blocks={block: 0}, shared={block: settings.length * shape.hidden}, tokens=settings.length)


def p_tuning(shape: BaseShape, adapter: Adapter) -> Footprint:
    """As ``prompt``, with the encoder's table and three matrices."""
    settings = adapter.p_tuning
    if settings is None:
        return Footprint(blocks={})
    block, wide, narrow = BlockId("p_tuning"), shape.hidden, settings.width
    size = settings.length * wide + 2 * wide * narrow + narrow * narrow + 2 * narrow + wide
    return Footprint(blocks={block: 0}, shared={block: size}, tokens=settings.length)


def prefix(shape: BaseShape, adapter: Adapter) -> Footprint:
    """The trunk once, a matrix a layer; attention keeps its longer keys and values."""
    settings = adapter.prefix
    if settings is None:
        return Footprint(blocks={})
    block, narrow, rows = BlockId("prefix"), settings.width, 2 * shape.key_width
    return Footprint(
        blocks={block: rows * (narrow + 1)},
        shared={block: shape.hidden * (settings.length + narrow) + narrow},
        saved=rows,
        saved_first_token=rows,
        flops=4 * settings.length * shape.hidden,
    )


def p_tuning_v2(shape: BaseShape, adapter: Adapter) -> Footprint:
    """Keys and values of a layer; attention keeps its longer keys and values."""
    settings = adapter.p_tuning_v2
    if settings is None:
        return Footprint(blocks={})
    rows = 2 * shape.key_width
    return Footprint(
        blocks={BlockId("p_tuning_v2"): settings.length * rows},
        saved=rows,
        saved_first_token=rows,
        flops=4 * settings.length * shape.hidden,
    )


def llama_adapter(shape: BaseShape, adapter: Adapter) -> Footprint:
    """A prompt and a gate a layer; keeps the scores of the second attention and what the gate multiplies."""
    settings = adapter.llama_adapter
    if settings is None:
        return Footprint(blocks={})
    return Footprint(
        blocks={BlockId("llama_adapter"): settings.length * shape.hidden + 1},
        saved=settings.length * shape.heads + shape.hidden,
        flops=4 * settings.length * shape.hidden,
    )
