"""Tiny models on a packed base, as a device with little memory holds it."""

from torch import nn

from fedpeft.base.quantize import Encoding, quantize
from fedpeft.base.residency import PackedWeight, QuantizedLinear

__all__ = ["pack"]


def pack(model: nn.Module, encoding: Encoding) -> nn.Module:
    """The model with the linear layers below its head packed, in place."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path not in ("classifier", "score", "lm_head"):
            weight = PackedWeight(quantize(module.weight, encoding), encoding, tuple(module.weight.shape))
            model.set_submodule(path, QuantizedLinear(weight, module.bias))
    return model
