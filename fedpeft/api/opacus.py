"""Our methods in Opacus: gradients of single examples of every graft that has them, for Opacus's own machinery.

    from fedpeft.api.opacus import register
    register()
    union.train_only(blocks)
    model = GradSampleModule(union.model, loss_reduction="sum", strict=False)      # or PrivacyEngine.make_private

Opacus finds a gradient for each *type* of module that owns trained parameters and is called. What it is given here are
the rules that our own hooks use (``fedpeft.tuning.per_sample_hooks``): closed forms where there are some, else the
module's vector-Jacobian product, example by example. ``UNSUPPORTED`` says which methods Opacus cannot train, and why;
with them ``grad_sample`` stays None, which Opacus's optimizer refuses.

``strict=False`` is needed for DoRA and VeRA, whose frozen buffers Opacus takes for running statistics. Opacus
leaves to whoever uses it what fedpeft's private steps do besides: Poisson sampling by the operating system's
randomness, fixed shapes, a loss that is one number an example, noise on a grid, a ledger.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
from fedpeft.methods.qalora import QaLoraPart
from fedpeft.methods.vera import VeraPart
from fedpeft.tuning.per_sample_hooks import RULES, any_module

__all__ = ["PARTS", "UNSUPPORTED", "register"]

PARTS: tuple[type[nn.Module], ...] = (
    BiasPart, BottleneckPart, Columns, DoraPart, FusionPart, InputGain, LoHaPart, LoKrPart, NormPart, OutputGain,
    QaLoraPart, Rows, VeraPart,
)  # fmt: skip
"""The grafts that get a sampler; heads are ``nn.Linear``, which Opacus knows."""

_NO_EXAMPLES = "its parameters are no module's that is called with examples"
_SHARED = "its parameters are shared by modules that are called one after the other"
_MEASURES = "it measures or prunes in a step, which would be a release without noise"

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "prompt": _NO_EXAMPLES,
        "p_tuning": _NO_EXAMPLES,
        "prefix": _NO_EXAMPLES,
        "p_tuning_v2": _NO_EXAMPLES,
        "llama_adapter": _NO_EXAMPLES,
        "coda": _NO_EXAMPLES,
        "unipelt": _NO_EXAMPLES,
        "compacter": _SHARED,
        "hypernetwork": _SHARED,
        "adalora": _MEASURES,
        "dylora": _MEASURES,
        "diffpruning": _MEASURES,
        "fish": _MEASURES,
    }
)
"""Method -> why Opacus cannot train it. fedpeft's own private steps do those of the first two reasons one by one."""


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
