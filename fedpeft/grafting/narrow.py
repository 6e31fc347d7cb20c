"""A narrow network with a residual's shape: what bottlenecks of every kind compute."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.common import Activation
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.lowrank import width_of

__all__ = ["check_width", "houlsby_places", "narrow"]


def narrow(
    h: Tensor, down: Tensor, up: Tensor, activation: Activation, down_bias: Tensor | None, up_bias: Tensor | None
) -> Tensor:
    """U act(D h + d) + u, (..., w) -> (..., w); D (m, w), U (w, m), in D's type."""
    inner = functional.linear(h.to(down.dtype), down, down_bias)  # (..., w) -> (..., m)
    inner = functional.relu(inner) if activation == "relu" else functional.gelu(inner)
    return functional.linear(inner, up, up_bias)


def houlsby_places(anatomy: Anatomy, *, wanted_by: str) -> Iterator[tuple[str, nn.Module]]:
    """The last matrices of attention and of the feed-forward in every chosen layer that has both, layer by layer."""
    places = [dict(reversed(anatomy.ports(slot, wanted_by=wanted_by))) for slot in ("o", "down")]
    for index in sorted(places[0].keys() & places[1].keys()):
        for place in places:
            path = f"{anatomy.layer_paths[index]}.{place[index].path}"
            yield path, anatomy.model.get_submodule(path)


def check_width(path: str, linear: nn.Module, width: int, *, wanted_by: str) -> int:
    """The width of the model at ``linear``.

    Raises:
        ConfigInvalid: the bottleneck is wider.
    """
    wide = width_of(linear, "out_features")
    if width > wide:
        problem = Problem(
            where=f"{wanted_by}.width", expected=f"at most {wide}, the output of {path}", found=str(width)
        )
        raise ConfigInvalid("The bottleneck is wider than the model.", problems=[problem])
    return wide
