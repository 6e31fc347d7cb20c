"""What the methods with small networks of their own add to a layer (see ``fedpeft.planner.placement``)."""

from fedpeft.config.additive import (
    Activation,
    Bottleneck,
    Coda,
    Compacter,
    Fusion,
    Hypernetwork,
    Parallel,
    Unipelt,
)
from fedpeft.ids import BlockId
from fedpeft.planner.counts import Footprint
from fedpeft.planner.read_shape import BaseShape

__all__ = ["bottleneck", "coda", "compacter", "fusion", "hypernetwork", "parallel", "unipelt"]


def bottleneck(shape: BaseShape, settings: Bottleneck) -> Footprint:
    """D, d, U, u of one or two narrow networks; each keeps its input and its inner activation."""
    places = 2 if settings.placement == "houlsby" else 1
    size = places * _network(shape, settings.width)
    return _narrow(shape, "bottleneck", places, settings.width, settings.activation, size)


def parallel(shape: BaseShape, settings: Parallel) -> Footprint:
    """As one bottleneck."""
    return _narrow(shape, "parallel", 1, settings.width, settings.activation, _network(shape, settings.width))


def compacter(shape: BaseShape, settings: Compacter) -> Footprint:
    """Two bottlenecks in factors, and the slow weights once."""
    both = settings.width + shape.hidden
    size = 2 * (2 * settings.rank * both + both)
    return _narrow(shape, "compacter", 2, settings.width, settings.activation, size, once=settings.terms**3)


def hypernetwork(shape: BaseShape, settings: Hypernetwork) -> Footprint:
    """An embedding a layer, and the network once."""
    narrow, wide, size = settings.width, shape.hidden, settings.embedding
    network, task = BlockId("hypernetwork"), BlockId("hypernetwork.task")
    once = 2 * size + 3 * size * size + size + 2 * narrow * wide * size
    one = _narrow(shape, "hypernetwork", 2, narrow, settings.activation, size)
    return Footprint(
        blocks={network: size, task: 0}, shared={network: once, task: size}, saved=one.saved, flops=one.flops
    )


def fusion(shape: BaseShape, settings: Fusion) -> Footprint:
    """The tasks' frozen bottlenecks; Q, K and V; keeps what every adapter made, its key, and the question."""
    wide, count = shape.hidden, len(settings.tasks)
    return Footprint(
        blocks={BlockId("fusion"): 3 * wide * wide},
        frozen={BlockId(f"fusion.{task}"): _network(shape, settings.width) for task in settings.tasks},
        saved=count * (3 * wide + settings.width) + 3 * wide,
        flops=count * (4 * wide * settings.width + 2 * wide * wide) + 4 * wide * wide,
    )


def unipelt(shape: BaseShape, settings: Unipelt) -> Footprint:
    """LoRA of q and v, a prefix, a bottleneck and four gates."""
    (query, wide), value = shape.matrices["q"], shape.key_width
    rank, narrow = settings.rank, settings.width
    lora = rank * (2 * wide + query + value)
    size = lora + 2 * settings.length * value + _network(shape, narrow) + 4 * (wide + 1)
    inner = narrow if settings.activation == "relu" else 2 * narrow
    attention = 6 * query  # attention of twice the width keeps wider queries, keys and values of every head
    return Footprint(
        blocks={BlockId("unipelt"): size},
        saved=2 * rank + query + value + attention + query + 2 * wide + inner,
        saved_first_token=rank + value + 4 * value,
        flops=2 * lora + 4 * wide * narrow + 8 * settings.length * wide,
    )


def coda(shape: BaseShape, settings: Coda) -> Footprint:
    """A router and a bottleneck; what the layer saves by computing fewer tokens is not counted."""
    size = _network(shape, settings.width) + shape.hidden
    return _narrow(shape, "coda", 1, settings.width, settings.activation, size)


def _network(shape: BaseShape, narrow: int) -> int:
    return 2 * shape.hidden * narrow + narrow + shape.hidden


def _narrow(
    shape: BaseShape, method: str, places: int, narrow: int, activation: Activation, size: int, *, once: int = 0
) -> Footprint:
    """Networks of width ``narrow`` in so many places of a layer; ``size`` coordinates a layer, ``once`` for all."""
    inner = narrow if activation == "relu" else 2 * narrow
    return Footprint(
        blocks={BlockId(method): size},
        shared={BlockId(method): once},
        saved=places * (shape.hidden + inner),
        flops=places * 4 * shape.hidden * narrow,
    )
