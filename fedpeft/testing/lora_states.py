"""LoRA states without torch, named as ``fedpeft.methods.lora`` names them, for tests of the rules."""

import numpy as np

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec
from fedpeft.entropy import generator
from fedpeft.ids import BlockId

__all__ = ["IN", "OUT", "PATHS", "TIERS", "lora_spec", "lora_state", "owned"]

TIERS = (1, 2, 4)
OUT, IN = 5, 6
PATHS = ("layer.q.fedpeft.lora", "layer.v.fedpeft.lora")


def lora_spec(*, train_a: bool = True, carried: int = 0) -> AdapterSpec:
    """Two matrices of 5 x 6 with tiers 1, 2, 4, a head of four coordinates and biases of three."""
    blocks = []
    for factor in "AB":
        for start, end in zip((0, *TIERS), TIERS, strict=False):
            shape = (end - start, IN) if factor == "A" else (OUT, end - start)
            tensors = tuple(TensorSpec(name=f"{path}.{factor}.t{end}", shape=shape) for path in PATHS)
            name = BlockId(f"lora.{factor}.t{end}")
            blocks.append(BlockSpec(block_id=name, method="lora", tensors=tensors, trainable=factor == "B" or train_a))
    for factor, shape in (("A", (carried, IN)), ("B", (OUT, carried))) if carried else ():
        tensors = tuple(TensorSpec(name=f"{path}.carried.{factor}", shape=shape) for path in PATHS)
        name = BlockId(f"lora.carried.{factor}")
        blocks.append(BlockSpec(block_id=name, method="lora", tensors=tensors, trainable=False))
    for method, size in (("bitfit", 3), ("head", 4)):
        tensor = TensorSpec(name=f"{method}.weight", shape=(size,))
        blocks.append(BlockSpec(block_id=BlockId(method), method=method, tensors=(tensor,)))
    return AdapterSpec(blocks=tuple(blocks))


def lora_state(spec: AdapterSpec, seed: int) -> AdapterState:
    """Standard normal everywhere, carried columns zero."""
    draw = generator(seed, "lora state")
    vectors = {}
    for block in spec.blocks:
        values = draw.standard_normal(block.size) * (0.0 if "carried" in block.block_id else 1.0)
        vectors[block.block_id] = values.astype(np.float32)
    return AdapterState(spec, vectors)


def owned(rank: int, *, factors: str = "AB", others: tuple[str, ...] = ("head",)) -> list[BlockId]:
    """What a device of this rank trains."""
    return [BlockId(f"lora.{f}.t{end}") for f in factors for end in TIERS if end <= rank] + list(map(BlockId, others))
