"""Opacus (Yousefpour et al. 2021) as the engine of per-example gradients: its hooks, with samplers for our grafts.

Only the gradients are Opacus's. Poisson samples, clipping, the grid, the noise and the accounting stay where they are
(``fedpeft.tuning.dp_sgd_mechanism``), for the mechanism must be the one that is accounted; and the same self-check
stands before it as before our own hooks (``fedpeft.tuning.hook_check``). What Opacus leaves open is closed here:

- its hooks are on the model for one pass only, and an example that raises leaves nothing behind for the next;
- it looks at modules in training: only those that own what is trained are, so that dropout of the base stays off;
- a layer that is computed again in the backward pass is listened to once;
- running statistics are refused for all modules but our own, whose frozen buffers are none.

``import opacus`` takes three CPU seconds, so it happens in the first private step that asks for it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.grafting.tiers import Columns, Rows
from fedpeft.methods.bitfit import BiasPart
from fedpeft.methods.bottleneck import BottleneckPart
from fedpeft.methods.dora import DoraPart
from fedpeft.methods.fusion import FusionPart
from fedpeft.methods.ia3 import InputGain, OutputGain
from fedpeft.methods.layernorm import NormPart
from fedpeft.methods.loha import LoHaPart
from fedpeft.methods.lokr import LoKrPart
from fedpeft.methods.prefix import PlainPrefix
from fedpeft.methods.prompt import MadePrompt, PlainPrompt
from fedpeft.methods.qalora import QaLoraPart
from fedpeft.methods.vera import VeraPart
from fedpeft.tuning.per_sample_hooks import RULES, NoBackEnd, any_module, owner_paths

__all__ = ["PARTS", "OpacusHooked", "register"]

PARTS: tuple[type[nn.Module], ...] = (
    BiasPart, BottleneckPart, Columns, DoraPart, FusionPart, InputGain, LoHaPart, LoKrPart, MadePrompt, NormPart,
    OutputGain, PlainPrefix, PlainPrompt, QaLoraPart, Rows, VeraPart,
)  # fmt: skip
"""The grafts that get a sampler; heads are ``nn.Linear``, which Opacus knows."""


def register() -> None:
    """Give Opacus a sampler for each of our grafts; may be called again."""
    from opacus.grad_sample import register_grad_sampler

    for part in PARTS:
        register_grad_sampler(part)(_sampler)


def _sampler(module: nn.Module, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """The gradient of each example, (b, *shape) a trained parameter; as Opacus calls it."""
    own = {name: value for name, value in module.named_parameters(recurse=False) if value.requires_grad}
    rule = RULES.get(type(module), any_module)
    found = rule(module, tuple(activations), frozenset(own))(backprops)
    return {own[name]: gradient for name, gradient in found.items()}


class OpacusHooked:
    """As ``fedpeft.tuning.per_sample_hooks.Hooked``, by Opacus's hooks.

    Args:
        model: the whole model; of its parameters exactly the trained ones require gradients.
        trained: the parameters by name, in the order of the result.

    Raises:
        NoBackEnd: Opacus has no sampler for a module that owns trained parameters, or takes one for one with running
            statistics; or other parameters require gradients too.
    """

    def __init__(self, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
        self._model, self._trained = model, list(trained.values())
        modules = dict(model.named_modules())
        self._owners = [modules[path] for path in owner_paths(model, trained)]
        asked = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if asked != {id(parameter) for parameter in self._trained}:
            raise NoBackEnd("Expected gradients of the trained parameters alone, found others that require them too.")
        register()
        self._expect_known()
        # For the process, as other threads warn too: the first modules have no input that requires a gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, a forward pass and ``backward`` leave the gradients for ``take``."""
        from opacus.grad_sample import GradSampleHooks

        before = [owner.training for owner in self._owners]
        # Not strict: what strict refuses, ``_expect_known`` has refused, but for the frozen buffers of our own parts.
        hooks: Any = GradSampleHooks(self._model, loss_reduction="sum", strict=False)
        try:
            for owner in self._owners:
                owner.training = True  # not their children: this is for Opacus to see
            yield
        finally:
            hooks.cleanup()
            for owner, was in zip(self._owners, before, strict=True):
                owner.training = was
                for left in ("activations", "max_batch_len"):  # a pass that raised leaves its inputs
                    owner.__dict__.pop(left, None)
            for parameter in self._trained:
                parameter.grad = None  # the sum, which Opacus lets autograd compute: nobody may step along it

    def backward(self, loss: Tensor) -> None:
        """One backward pass; layers that are computed again in it are not listened to twice."""
        for owner in self._owners:
            owner.training = False
        torch.autograd.backward([loss])

    def take(self, examples: int) -> list[Tensor]:
        """The gradients of the last backward pass, each (b, *shape).

        Raises:
            NoBackEnd: a parameter had no part in the loss, or the examples are not in the first dimension.
        """
        found = []
        for parameter in self._trained:
            gradient = getattr(parameter, "grad_sample", None)
            shape = (examples, *parameter.shape)
            if not isinstance(gradient, Tensor) or gradient.shape != shape:
                seen = tuple(gradient.shape) if isinstance(gradient, Tensor) else "none"
                raise NoBackEnd(f"Expected a gradient {shape} for each trained tensor, found {seen} for one.")
            found.append(gradient.detach())
        return found

    def _expect_known(self) -> None:
        from opacus.grad_sample import GradSampleHooks

        for owner in self._owners:
            if type(owner) not in GradSampleHooks.GRAD_SAMPLERS:
                raise NoBackEnd(f"Expected modules that Opacus has a sampler for, found {type(owner).__name__}.")
            if type(owner) not in PARTS and next(owner.buffers(), None) is not None:
                raise NoBackEnd(f"Expected trained modules without running statistics, found {type(owner).__name__}.")
