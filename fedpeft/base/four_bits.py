"""Four-bit codes: NF4 (Dettmers 2023) and int4, two to a byte, with their scales."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from fedpeft.base.tensors import RowTensor, row_slabs
from fedpeft.errors import ConfigInvalid

__all__ = [
    "ABSMAX_BLOCK",
    "GROUP",
    "NF4_BLOCK",
    "NF4_CODES",
    "absmax_map",
    "finite",
    "in_blocks",
    "int4_pairs",
    "look_up",
    "nf4_absmax",
    "nf4_pairs",
    "nf4_slabs",
    "quantize_int4",
]


NF4_BLOCK, ABSMAX_BLOCK, GROUP = 64, 256, 32
SLAB = 2**14  # bytes that are looked up at once: their values stay in the cache


# Quantiles of N(0, 1) scaled to [-1, 1], with an exact zero: QLoRA, appendix E.
NF4_CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def finite(slab: Tensor) -> Tensor:
    """The values themselves; a weight that is no number is refused."""
    if slab.dtype.is_floating_point and not bool(torch.isfinite(slab).all()):
        raise ConfigInvalid("Expected finite weights, found NaN or infinity; use another checkpoint.")
    return slab


def nf4_slabs(weight: RowTensor) -> Iterator[dict[str, Tensor]]:
    """NF4 codes a slab of rows at a time, then the scales of all."""
    columns = math.prod(weight.shape[1:])
    largest = []
    for rows in row_slabs(weight.shape, multiple=NF4_BLOCK // math.gcd(NF4_BLOCK, columns)):  # no block is cut
        slab = weight.read(*rows).float().reshape(-1)
        blocks = in_blocks(slab, NF4_BLOCK)
        absmax = finite(blocks.abs().amax(dim=1))  # (blocks,); a maximum hands NaN on
        divisor = torch.where(absmax == 0, torch.ones_like(absmax), absmax).unsqueeze(1)
        codes = _nearest_nf4(blocks / divisor)[: slab.numel() + slab.numel() % 2]
        largest.append(absmax)
        pairs = codes.view(torch.int16)  # first + 256 * second, as little-endian machines see two bytes
        yield {"nf4": pairs.bitwise_left_shift(4).add_(pairs.bitwise_right_shift(8)).to(torch.uint8)}
    yield from nf4_absmax(largest)


def nf4_absmax(largest: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
    """The second quantization: absmax of all blocks about their exact mean, in blocks of 256."""
    total = math.fsum(value for absmax in largest for value in absmax.tolist())
    absmax = torch.cat(list(largest))
    offset = torch.tensor([total / absmax.numel()], dtype=torch.float32)
    yield {"offset": offset}
    for start in range(0, absmax.numel(), ABSMAX_BLOCK * 1024):
        part = absmax[start : start + ABSMAX_BLOCK * 1024]
        centred = in_blocks(part - offset, ABSMAX_BLOCK)
        absmax2 = centred.abs().amax(dim=1)
        divisor = torch.where(absmax2 == 0, torch.ones_like(absmax2), absmax2).unsqueeze(1)
        codes = torch.bucketize(centred / divisor, _midpoints(absmax_map()), out_int32=True).to(torch.uint8)
        yield {"absmax": codes.view(-1)[: part.numel()].contiguous(), "absmax2": absmax2}


def _nearest_nf4(values: Tensor) -> Tensor:
    """The index of the nearest NF4 code of each value in [-1, 1]; flat uint8.

    As ``bucketize`` over the 15 midpoints, five times as fast: a value's cell, of 64, says how many midpoints lie
    below the cell; no cell holds two, so one comparison decides the rest. Exact: a larger value's cell is no lower.
    """
    below, midpoint = _nf4_cells()
    cells = _nf4_cell(values.view(-1))
    codes = torch.index_select(below, 0, cells)
    return codes.add_(torch.gt(values.view(-1), torch.index_select(midpoint, 0, cells)).view(torch.uint8))


def _nf4_cell(values: Tensor) -> Tensor:
    return values.mul(32).add_(32).to(torch.int32)


@cache
def _nf4_cells() -> tuple[Tensor, Tensor]:
    """For each of the cells 0 to 64: how many midpoints lie in cells below, and the midpoint in it, or infinity."""
    below, midpoint = torch.zeros(65, dtype=torch.uint8), torch.full((65,), math.inf)
    middles = _midpoints(_nf4_codes())
    for cell, middle in zip(_nf4_cell(middles).tolist(), middles.tolist(), strict=True):
        below[cell + 1 :] += 1
        midpoint[cell] = middle
    return below, midpoint


def quantize_int4(weight: Tensor) -> dict[str, Tensor]:
    """int4 codes by groups, with scale and minimum of each."""
    groups = weight.view(weight.shape[0], -1, GROUP)  # (rows, columns) -> (rows, groups, 32)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    minimum, scale = low.half(), ((high - low) / 15).half()
    if not bool(torch.isfinite(minimum).all() & torch.isfinite(scale).all()):
        raise ConfigInvalid("Expected weights within float16's range for int4-g32, found larger; use quantize=int8.")
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float().unsqueeze(2)
    codes = ((groups - minimum.float().unsqueeze(2)) / divisor).round_().clamp_(0, 15).to(torch.uint8)
    codes = codes.view(weight.shape[0], -1, 2)
    return {"int4": codes[..., 0] + codes[..., 1] * 16, "scale": scale, "min": minimum}


def in_blocks(flat: Tensor, size: int) -> Tensor:
    """(n,) -> (ceil(n/size), size), the last block padded with zeros; a view when nothing is padded."""
    missing = -flat.numel() % size
    return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, size)


def _midpoints(codes: Tensor) -> Tensor:
    return ((codes[1:].double() + codes[:-1].double()) / 2).float()


@cache
def _nf4_codes() -> Tensor:
    return torch.tensor(NF4_CODES, dtype=torch.float32)


@cache
def nf4_pairs() -> Tensor:
    """Byte -> its two NF4 values, high nibble first. (256, 2)."""
    return torch.tensor([(NF4_CODES[byte >> 4], NF4_CODES[byte & 15]) for byte in range(256)], dtype=torch.float32)


@cache
def int4_pairs() -> Tensor:
    """Byte -> its two 4-bit codes as floats, low nibble first. (256, 2)."""
    return torch.tensor([(byte & 15, byte >> 4) for byte in range(256)], dtype=torch.float32)


def look_up(pairs: Tensor, codes: Tensor, out: Tensor | None = None) -> Tensor:
    """Both values of each byte. (256, 2) and (n,) -> (n, 2).

    Args:
        out: (2 n,) or longer, float32, contiguous, where to put them on a CPU; None: into a new tensor.

    A row of ``pairs`` is copied as one number of eight bytes, and on a CPU by numpy, a few thousand at a time: torch's
    ``index_select`` over rows of two floats takes three times as long.
    """
    if codes.device.type != "cpu":
        return torch.index_select(pairs.to(codes.device), 0, codes.int())
    found = (torch.empty(2 * codes.numel()) if out is None else out[: 2 * codes.numel()]).view(-1, 2)
    table, to = pairs.view(torch.int64).view(-1).numpy(), found.view(torch.int64).view(-1).numpy()
    given = codes.numpy()
    for first in range(0, len(given), SLAB):
        slab = slice(first, first + SLAB)
        table.take(given[slab], out=to[slab], mode="clip")  # a byte is never out of range
    return found


@cache
def absmax_map() -> Tensor:
    """The signed dynamic 8-bit map (Dettmers 2016) that double quantization uses, from exact fractions. (256,)."""
    values = [Fraction(0), Fraction(1)]
    for exponent in range(7):
        steps = 2**exponent
        for step in range(steps):
            mean = Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * step + 1, 2 * steps)
            values += [mean * Fraction(10) ** (exponent - 6), -mean * Fraction(10) ** (exponent - 6)]
    return torch.tensor(sorted(float(value) for value in values), dtype=torch.float32)
