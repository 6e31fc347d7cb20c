"""The global state: one flat vector per block, with a digest each."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from fedpeft.adapter.spec import AdapterSpec
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId

__all__ = ["AdapterState"]

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AdapterState(Mapping[BlockId, Vector]):
    """The values of every block of a specification. Immutable: the vectors are made read-only.

    Args:
        spec: what the blocks are.
        vectors: one float32 vector of shape (block.size,) a block.

    Raises:
        SpecMismatch: a block is missing, unknown or of another shape or dtype, or has a non-finite value.
    """

    spec: AdapterSpec
    vectors: Mapping[BlockId, Vector]

    def __post_init__(self) -> None:
        expected = [block.block_id for block in self.spec.blocks]
        if sorted(self.vectors) != sorted(expected):
            raise SpecMismatch(f"Expected the blocks {sorted(expected)}, found {sorted(self.vectors)}.")
        for block in self.spec.blocks:
            vector = self.vectors[block.block_id]
            if vector.dtype != np.float32 or vector.shape != (block.size,):
                raise SpecMismatch(
                    f"{block.block_id}: expected float32 of shape ({block.size},), "
                    f"found {vector.dtype} of {vector.shape}."
                )
            if not np.isfinite(vector).all():
                raise SpecMismatch(f"{block.block_id}: expected finite values, found NaN or infinity.")
            vector.setflags(write=False)

    def __getitem__(self, block_id: BlockId) -> Vector:
        return self.vectors[block_id]

    def __iter__(self) -> Iterator[BlockId]:
        return (block.block_id for block in self.spec.blocks)

    def __len__(self) -> int:
        return len(self.spec.blocks)

    @cached_property
    def digests(self) -> dict[BlockId, str]:
        """SHA-256 of each block's little-endian bytes, in hex."""
        return {block_id: block_digest(self[block_id]) for block_id in self}

    def replace(self, changed: Mapping[BlockId, Vector]) -> "AdapterState":
        """A new state with some blocks changed."""
        return AdapterState(self.spec, {**self.vectors, **changed})

    def to_safetensors(self) -> bytes:
        """The state as one safetensors file; the specification travels in its metadata."""
        arrays = {block_id: np.ascontiguousarray(self[block_id]) for block_id in self}
        return bytes(save_safetensors(dict(arrays), metadata={"spec_digest": self.spec.digest}))

    @classmethod
    def from_safetensors(cls, spec: AdapterSpec, payload: bytes) -> "AdapterState":
        """The inverse of ``to_safetensors`` under a known specification.

        Raises:
            SpecMismatch: the payload does not hold exactly the blocks of ``spec``.
        """
        arrays = load_safetensors(payload)
        return cls(spec, {BlockId(name): array for name, array in arrays.items()})


def block_digest(vector: Vector) -> str:
    """SHA-256 of a block's values as little-endian float32, in hex."""
    return hashlib.sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
