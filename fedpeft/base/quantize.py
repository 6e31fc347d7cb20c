"""Tensor encodings of the base artifact: how a weight is packed, and how it is read back as float32.

Every encoding is elementwise arithmetic that IEEE 754 defines to the bit, maxima, and one exact sum
(``math.fsum``), so a weight has the same packed bytes and the same float32 values on every machine,
instruction set and thread count. Division and multiplication are never fused into one kernel.

==========  ============================================================================  ==============
encoding    parts, beside the shape                                                       bits per weight
==========  ============================================================================  ==============
plain       ``value`` as the source has it (f32, f16, bf16)                               16 or 32
int8        ``int8`` codes (shape), ``scale`` f32, one per row: absmax / 127                8 + 32/columns
int8-g32    ``int8`` codes (shape), ``scale`` f16, one for 32 columns of a row, rounded   8.5
            up; GGUF's Q8_0 comes through exactly
nf4         ``nf4`` two codes a byte, high first (QLoRA, Dettmers 2023, section 3);       4.13
            blocks of 64 over the flattened weight; double quantization of the blocks'
            absmax: ``absmax`` uint8 codes in blocks of 256, ``absmax2`` f32, one f32
            ``offset``. The same numbers as bitsandbytes computes from these parts.
int4-g32    ``int4`` two codes a byte, low first; ``scale`` and ``min`` f16, one each     5
            for 32 columns of a row: value = code * scale + min
==========  ============================================================================  ==============

Linear matrices follow the scheme, and those of experts, which lie one below the other and are read one by one;
embeddings, also those that serve as output layer, are int8 under ``int8`` and int8-g32 under the 4-bit schemes
(SmolLM2: rows with one scale raise the perplexity by 0.4 %, groups by nothing); biases, norms and others stay plain.
Groups never cross rows: a matrix whose columns are
no multiple of 32 is int8 instead.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedpeft.base.four_bits import (
    ABSMAX_BLOCK,
    GROUP,
    NF4_BLOCK,
    absmax_map,
    finite,
    in_blocks,
    int4_pairs,
    look_up,
    nf4_pairs,
    nf4_slabs,
    quantize_int4,
)
from fedpeft.base.tensors import RowTensor, matrix_rows, row_slabs
from fedpeft.errors import ConfigInvalid

__all__ = [
    "Encoding",
    "PartSpec",
    "Scheme",
    "choose_encoding",
    "dequantize",
    "dequantize_matrix",
    "dequantize_rows",
    "parts_of",
    "quantize",
    "quantize_rows",
]

Scheme = Literal["none", "int8", "nf4", "int4-g32"]
Encoding = Literal["plain", "int8", "int8-g32", "nf4", "int4-g32"]
Role = Literal["linear", "embedding", "other"]

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One stored tensor of an encoded weight."""

    part: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def named(self, weight: str) -> "PartSpec":
        """The part of one weight, as it is called in the file: ``WEIGHT/PART``."""
        return replace(self, part=f"{weight}/{self.part}")


def choose_encoding(scheme: Scheme, role: Role, shape: tuple[int, ...]) -> Encoding:
    """How a tensor of this role is stored under ``scheme``; of three dimensions, the matrices of experts."""
    if scheme == "none" or role == "other" or len(shape) not in (2, 3) or 0 in shape:
        return "plain"
    if scheme == "int8" or ((role == "embedding" or scheme == "int4-g32") and shape[-1] % GROUP):
        return "int8"
    if scheme == "nf4" and len(shape) == 3 and shape[1] * shape[2] % NF4_BLOCK:
        return "int8"  # a block would hold weights of two experts, and one alone could not be read
    return "int8-g32" if role == "embedding" else scheme


def parts_of(encoding: Encoding, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[PartSpec, ...]:
    """The stored tensors of a weight: known before it is quantized, so that the file can be laid out first."""
    size = math.prod(shape)
    if encoding != "plain":
        shape = _flat(shape)
    match encoding:
        case "plain":
            return (PartSpec("value", torch.float32 if dtype == torch.float64 else dtype, shape),)
        case "int8":
            return (PartSpec("int8", torch.int8, shape), PartSpec("scale", torch.float32, (shape[0], 1)))
        case "int8-g32":
            groups = (shape[0], shape[1] // GROUP)
            return (PartSpec("int8", torch.int8, shape), PartSpec("scale", torch.float16, groups))
        case "nf4":
            blocks = -(-size // NF4_BLOCK)
            return (
                PartSpec("nf4", torch.uint8, (-(-size // 2),)),
                PartSpec("absmax", torch.uint8, (blocks,)),
                PartSpec("absmax2", torch.float32, (-(-blocks // ABSMAX_BLOCK),)),
                PartSpec("offset", torch.float32, (1,)),
            )
        case "int4-g32":
            groups = (shape[0], shape[1] // GROUP)
            return (
                PartSpec("int4", torch.uint8, (shape[0], shape[1] // 2)),
                PartSpec("scale", torch.float16, groups),
                PartSpec("min", torch.float16, groups),
            )


def quantize(weight: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    """Pack one weight that is in memory.

    Args:
        weight: any float dtype; two or three dimensions unless ``plain``; ``plain`` takes integers, too.

    Returns:
        The parts that ``parts_of`` lists, contiguous.

    Raises:
        ConfigInvalid: a value is not finite, or outside float16's range under ``int4-g32``.
    """
    pieces: dict[str, list[Tensor]] = {}
    for made in quantize_rows(RowTensor.of(weight), encoding):
        for part, piece in made.items():
            pieces.setdefault(part, []).append(piece)
    shapes = {spec.part: spec.shape for spec in parts_of(encoding, tuple(weight.shape), weight.dtype)}
    return {part: torch.cat([piece.view(-1) for piece in pieces[part]]).view(shapes[part]) for part in pieces}


def quantize_rows(weight: RowTensor, encoding: Encoding) -> Iterator[dict[str, Tensor]]:
    """As ``quantize``, slab by slab: pieces of the parts, each continuing where the last one of its part ended.

    Every encoding is local to rows but nf4, whose second quantization needs the mean of all blocks' absmax: that
    is kept, one number for 64 weights, and comes last. The bytes do not depend on where the slabs are cut.
    """
    if encoding != "plain" and len(weight.shape) == 3:
        weight = matrix_rows(weight)
    if encoding == "nf4":
        yield from nf4_slabs(weight)
        return
    for rows in row_slabs(weight.shape):
        slab = finite(weight.read(*rows))
        match encoding:
            case "plain":
                yield {"value": (slab.float() if slab.dtype == torch.float64 else slab).contiguous()}
            case "int8":
                yield _quantize_int8(slab.float())
            case "int8-g32":
                yield _quantize_int8_groups(slab.float())
            case "int4-g32":
                yield quantize_int4(slab.float())


def dequantize(
    parts: Mapping[str, Tensor], encoding: Encoding, shape: tuple[int, ...], *, out: Tensor | None = None
) -> Tensor:
    """The weight as a contiguous float32 tensor, fresh or in ``out``; of ``plain`` f32 the stored tensor itself.

    Args:
        out: flat float32 memory for all values of whole blocks; four-bit encodings on a CPU use it, others do not.
    """
    if encoding != "plain" and len(shape) == 3:
        return dequantize(parts, encoding, _flat(shape), out=out).view(shape)
    match encoding:
        case "plain":
            value = parts["value"]
            value = value.float() if value.dtype.is_floating_point else value
            # BLAS may pick another kernel, and other roundings, for memory that is not aligned.
            return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()
        case "int8":
            return parts["int8"].float().mul_(parts["scale"])
        case "int8-g32":
            return _scale_groups(parts["int8"], parts["scale"])
        case "nf4":
            absmax = absmax_map().to(parts["absmax"].device)[parts["absmax"].int()]
            absmax = in_blocks(absmax, ABSMAX_BLOCK).mul_(parts["absmax2"].unsqueeze(1)).view(-1)[: absmax.numel()]
            absmax = absmax.add_(parts["offset"])
            return _nf4_blocks(parts["nf4"], absmax, out)[: math.prod(shape)].view(shape)
        case "int4-g32":
            codes = look_up(int4_pairs(), parts["int4"].view(-1), out)  # (n/2,) -> (n/2, 2)
            groups = codes.view(shape[0], shape[1] // GROUP, GROUP)
            groups = groups.mul_(parts["scale"].float().unsqueeze(2)).add_(parts["min"].float().unsqueeze(2))
            return groups.view(shape)


def dequantize_matrix(parts: Mapping[str, Tensor], encoding: Encoding, shape: tuple[int, ...], index: int) -> Tensor:
    """One matrix of a tensor of three dimensions: what ``dequantize`` would give at ``index``, bit for bit."""
    _, rows, columns = shape
    if encoding == "plain":
        return dequantize({"value": parts["value"][index]}, encoding, (rows, columns))
    if encoding != "nf4":
        own = {part: value[index * rows : (index + 1) * rows] for part, value in parts.items()}
        return dequantize(own, encoding, (rows, columns))
    size = rows * columns
    first, last = index * size // NF4_BLOCK, (index + 1) * size // NF4_BLOCK  # whole blocks: see ``choose_encoding``
    absmax = absmax_map().to(parts["absmax"].device)[parts["absmax"][first:last].int()]
    outer = torch.arange(first, last, device=absmax.device) // ABSMAX_BLOCK
    absmax = absmax.mul_(parts["absmax2"][outer]).add_(parts["offset"])
    return _nf4_blocks(parts["nf4"][index * size // 2 : (index + 1) * size // 2], absmax).view(rows, columns)


def dequantize_rows(parts: Mapping[str, Tensor], encoding: Encoding, rows: Tensor) -> Tensor:
    """Only the given rows of an embedding: what ``dequantize`` would give at ``rows``, bit for bit."""
    if encoding == "plain":
        return parts["value"][rows].float()
    if encoding == "int8":
        return parts["int8"][rows].float().mul_(parts["scale"][rows])
    if encoding == "int8-g32":
        return _scale_groups(parts["int8"][rows], parts["scale"][rows])
    raise ValueError(f"Expected an encoding of embeddings, found {encoding}.")


def _nf4_blocks(codes: Tensor, absmax: Tensor, out: Tensor | None = None) -> Tensor:
    """Flat: the codes of whole blocks, each by its block's absmax."""
    pairs = look_up(nf4_pairs(), codes, out)  # (ceil(n/2),) -> (ceil(n/2), 2)
    return in_blocks(pairs.view(-1), NF4_BLOCK).mul_(absmax.unsqueeze(1)).view(-1)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The rows of all matrices, one below the other."""
    return (math.prod(shape[:-1]), shape[-1])


def _quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (weight / divisor).round_().clamp_(-127, 127).to(torch.int8)
    return {"int8": codes, "scale": scale}


def _quantize_int8_groups(weight: Tensor) -> dict[str, Tensor]:
    groups = weight.view(weight.shape[0], -1, GROUP)  # (rows, columns) -> (rows, groups, 32)
    exact = groups.abs().amax(dim=2) / 127
    scale = exact.half()
    # Rounded up, so that no code is clipped, however small the weights: the next float16 is the next integer.
    scale = torch.where(scale.float() < exact, (scale.view(torch.int16) + 1).view(torch.float16), scale)
    if not bool(torch.isfinite(scale).all()):
        raise ConfigInvalid("Expected weights within float16's range, found larger; use quantize=int8.")
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float().unsqueeze(2)
    codes = (groups / divisor).round_().clamp_(-127, 127).to(torch.int8)
    return {"int8": codes.view(weight.shape), "scale": scale}


def _scale_groups(codes: Tensor, scale: Tensor) -> Tensor:
    """(..., columns), (..., groups) -> (..., columns)."""
    groups = codes.float().view(*scale.shape, GROUP)
    return groups.mul_(scale.float().unsqueeze(-1)).view(codes.shape)
