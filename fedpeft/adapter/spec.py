"""Block specifications: what each block of the union adapter is made of (docs/design.md, section 3).

A block is an ordered list of named float32 tensors, seen by everything after the device's training as one
flat vector. Its specification is the only joint between the PEFT methods and the rest: after ``flatten``
no code knows the method, before it none knows the crypto.

Invariant: the order of tensors and their shapes are part of the digest, so two sides that agree on the
digest agree on every coordinate of every vector.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId

__all__ = ["AdapterSpec", "BlockSpec", "TensorSpec", "flatten", "unflatten"]

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a block.

    Args:
        name: the parameter's path in the model that carries the adapter, unique in the whole adapter.
        shape: its shape; () is a scalar.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """One block: what is summed together and owned together.

    Args:
        block_id: unique in the adapter, e.g. ``lora.B.t8``.
        method: the PEFT method it belongs to, e.g. ``lora``; for reports, never for arithmetic.
        tensors: its tensors in wire order.
        trainable: False for blocks that are part of the state but that no round changes, such as a frozen A.
    """

    block_id: BlockId
    method: str
    tensors: tuple[TensorSpec, ...]
    trainable: bool = True

    @property
    def size(self) -> int:
        """How many float32 coordinates the flat vector has."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """Every block of a run's union adapter, in canonical order.

    Raises:
        SpecMismatch: two blocks or two tensors share a name, or a block is empty.
    """

    blocks: tuple[BlockSpec, ...]

    def __post_init__(self) -> None:
        names = {
            "block id": [str(block.block_id) for block in self.blocks],
            "tensor name": [tensor.name for block in self.blocks for tensor in block.tensors],
        }
        for kind, values in names.items():
            repeated = sorted(name for name, count in Counter(values).items() if count > 1)
            if repeated:
                raise SpecMismatch(f"Expected every {kind} once, found again: {', '.join(repeated)}.")
        empty = [block.block_id for block in self.blocks if block.size == 0]
        if empty:
            raise SpecMismatch(f"Expected blocks with at least one coordinate, found empty: {', '.join(empty)}.")

    def __getitem__(self, block_id: BlockId) -> BlockSpec:
        for block in self.blocks:
            if block.block_id == block_id:
                return block
        known = ", ".join(block.block_id for block in self.blocks)
        raise SpecMismatch(f"Expected one of the blocks {known}; found {block_id!r}.")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; the digest's preimage."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "AdapterSpec":
        """The inverse of ``to_json``.

        Raises:
            SpecMismatch: the text is not the canonical JSON of a specification.
        """
        try:
            spec = cls(blocks=tuple(_block_from(entry) for entry in json.loads(text)["blocks"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SpecMismatch(f"Expected the JSON of an adapter specification: {error!r}.") from error
        if spec.to_json() != text:
            raise SpecMismatch("Expected canonical JSON (sorted keys, no spaces, no other keys).")
        return spec

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def flatten(block: BlockSpec, tensors: Mapping[str, npt.NDArray[np.floating[Any]]]) -> Vector:
    """The block's flat vector, (size,) float32, from its tensors by name.

    Raises:
        SpecMismatch: a tensor is missing or has another shape. Extra tensors are ignored: a model's
            parameters may be passed whole.
    """
    vector = np.empty(block.size, np.float32)
    offset = 0
    for spec in block.tensors:
        tensor = tensors.get(spec.name)
        if tensor is None or tensor.shape != spec.shape:
            found = "nothing" if tensor is None else f"shape {tensor.shape}"
            raise SpecMismatch(f"{block.block_id}: expected {spec.name} of shape {spec.shape}, found {found}.")
        vector[offset : offset + spec.size] = tensor.reshape(-1)
        offset += spec.size
    return vector


def unflatten(block: BlockSpec, vector: Vector) -> dict[str, Vector]:
    """The block's tensors by name; views into ``vector``, not copies.

    Raises:
        SpecMismatch: the vector is not float32 of shape (block.size,).
    """
    if vector.dtype != np.float32 or vector.shape != (block.size,):
        raise SpecMismatch(
            f"{block.block_id}: expected float32 of shape ({block.size},), found {vector.dtype} of {vector.shape}."
        )
    tensors: dict[str, Vector] = {}
    offset = 0
    for spec in block.tensors:
        tensors[spec.name] = vector[offset : offset + spec.size].reshape(spec.shape)
        offset += spec.size
    return tensors


def _block_from(entry: dict[str, Any]) -> BlockSpec:
    tensors = tuple(TensorSpec(name=t["name"], shape=tuple(t["shape"])) for t in entry["tensors"])
    return BlockSpec(
        block_id=BlockId(entry["block_id"]), method=entry["method"], tensors=tensors, trainable=entry["trainable"]
    )
