"""Writing safetensors: the same bytes everywhere, a slab of a weight in memory at a time.

The file is laid out from tensor specifications before any tensor exists, then filled. The format is that
of safetensors 0.5 (header length, JSON header, data without holes, larger types first); the library's own
writer leaves the order of metadata open and wants every tensor at once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.base.quantize import PartSpec

__all__ = ["write_safetensors"]

ALIGNMENT = 64  # the data begins at a cache line: kernels may round differently on weights that do not
CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def write_safetensors(path: Path, specs: Sequence[PartSpec], produced: Iterable[Mapping[str, Tensor]]) -> None:
    """Write ``specs`` (names in ``PartSpec.part``) as one safetensors file.

    Args:
        specs: every tensor of the file, in any order.
        produced: mappings from name to the next piece of that tensor; together they give each of them once, whole.

    Raises:
        ValueError: what was produced is not what the specifications say.
    """
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.part))  # as the library: aligned without holes
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for spec in ordered:
        start, end = end, end + _size_bytes(spec)
        header[spec.part] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        offsets[spec.part] = start
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii")
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
    by_name = {spec.part: spec for spec in ordered}
    written = dict.fromkeys(by_name, 0)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
        for pieces in produced:
            for name, piece in pieces.items():
                _check(piece, by_name[name], written[name])
                file.seek(8 + len(encoded) + offsets[name] + written[name])
                file.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                written[name] += piece.nbytes
    if missing := sorted(spec.part for spec in ordered if written[spec.part] < _size_bytes(spec)):
        raise ValueError(f"Expected every tensor to be produced, found none or too little for {missing}.")


def _check(piece: Tensor, spec: PartSpec, written: int) -> None:
    if (
        piece.dtype != spec.dtype
        or tuple(piece.shape[1:]) != spec.shape[1:]
        or written + piece.nbytes > _size_bytes(spec)
    ):
        raise ValueError(f"Expected {spec}, found {piece.dtype} {tuple(piece.shape)} after {written} bytes.")


def _size_bytes(spec: PartSpec) -> int:
    return spec.dtype.itemsize * torch.Size(spec.shape).numel()
