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
randomness, fixed shapes, a loss that is one number per example, noise on a grid, a ledger.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.catalogue import METHODS
from fedpeft.tuning.opacus.hooks import PARTS, register

__all__ = ["PARTS", "UNSUPPORTED", "register"]

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {method.name: method.opacus.why_not for method in METHODS if not method.opacus.able}
)
"""Method -> why Opacus cannot train it. fedpeft's own private steps do those that measure nothing one by one."""
