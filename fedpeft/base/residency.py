"""Layers that keep their weight packed and unpack it for each use: less memory, the same bits.

Both passes of a linear layer unpack the weight anew and drop it, so autograd saves only the packed parts
(views of the artifact's memory map, shared by every process that maps it). The float32 weight and the
kernel are those of the dense layer, so logits are equal to the bit, on CPU and in float32.
"""

import math
import threading
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedpeft.base.four_bits import NF4_BLOCK
from fedpeft.base.quantize import Encoding, dequantize, dequantize_rows

__all__ = ["PackedLayer", "PackedWeight", "QuantizedEmbedding", "QuantizedLinear", "packed_linear"]


_SCRATCH = threading.local()


def _scratch(values: int) -> Tensor:
    """Memory of this thread for so many values and a last block's padding.

    A matrix of 46 MB in new memory takes the system longer to hand out, page by page, than it takes to unpack.
    """
    held: Tensor | None = getattr(_SCRATCH, "held", None)
    if held is None or held.numel() < values + NF4_BLOCK:
        _SCRATCH.held = None  # freed before the larger one is made
        with torch.inference_mode(mode=False):
            held = _SCRATCH.held = torch.empty(values + NF4_BLOCK)
    return held


class PackedWeight:
    """A frozen weight as the artifact stores it."""

    def __init__(self, parts: Mapping[str, Tensor], encoding: Encoding, shape: tuple[int, ...]) -> None:
        self.parts, self.encoding, self.shape = dict(parts), encoding, shape

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed parts."""
        return sum(part.nbytes for part in self.parts.values())

    def __deepcopy__(self, memo: object) -> "PackedWeight":
        """Itself: it never changes, so copies of a model share it."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the packed parts are."""
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device) -> "PackedWeight":
        """The same weight on another device."""
        parts = {name: part.to(device) for name, part in self.parts.items()}
        return PackedWeight(parts, self.encoding, self.shape)

    def unpack(self) -> Tensor:
        """The float32 weight, made anew."""
        return dequantize(self.parts, self.encoding, self.shape)

    def unpack_for_now(self) -> Tensor:
        """The float32 weight until this thread asks for the next one: a product needs it no longer."""
        return dequantize(self.parts, self.encoding, self.shape, out=_scratch(math.prod(self.shape)))

    def rows(self, rows: Tensor) -> Tensor:
        """The float32 weight at these rows."""
        return dequantize_rows(self.parts, self.encoding, rows)


class _PackedLinear(torch.autograd.Function):
    """y = x W^T + b with W unpacked in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, weight.unpack_for_now(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (gradient,) = gradients
        weight: PackedWeight = ctx.weight
        # Where products are in bfloat16 the gradient is, too; autograd widens what is returned.
        x = gradient @ weight.unpack_for_now().to(gradient.dtype) if ctx.needs_input_grad[0] else None
        bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        return x, None, bias


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """(..., d_in) -> (..., d_out), the weight unpacked in forward and again in backward."""
    result: Tensor = _PackedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class PackedLayer(nn.Module):
    """A layer whose ``weight`` unpacks at each access. It is no parameter: to be read, never trained or assigned."""

    packed: PackedWeight

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed = self.packed.to(fn(torch.empty(0)).device)
        return self

    @property
    def weight(self) -> Tensor:
        """The float32 weight, made anew; of its layer's shape."""
        return self.packed.unpack()


class QuantizedLinear(PackedLayer, nn.Linear):  # type: ignore[override]
    """``nn.Linear`` over a packed weight; a subclass so that code which looks for linear layers finds it."""

    def __init__(self, packed: PackedWeight, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate the dense weight
        self.out_features, self.in_features = packed.shape
        self.packed = packed
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        """(..., in_features) -> (..., out_features)."""
        return packed_linear(input, self.packed, self.bias)


class QuantizedEmbedding(PackedLayer, nn.Embedding):  # type: ignore[override]
    """``nn.Embedding`` over a packed table: only the rows looked up are unpacked."""

    def __init__(self, packed: PackedWeight, padding_idx: int | None) -> None:
        nn.Module.__init__(self)  # not nn.Embedding's: it would allocate the dense table
        self.num_embeddings, self.embedding_dim = packed.shape
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, None, 2.0
        self.scale_grad_by_freq, self.sparse = False, False
        self.packed = packed

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Embedding's name
        """(...) token ids -> (..., embedding_dim)."""
        return self.packed.rows(input)
