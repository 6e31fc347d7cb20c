"""The two factors of a low-rank change, each cut into tiers that are parameters of their own.

Each factor is called, with examples in the first dimension: that is where the gradient of each example is taken, by our
hooks and by Opacus's (``fedpeft.tuning.per_sample_hooks``, ``fedpeft.api.opacus``).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Columns", "Rows", "added"]


class Rows(nn.ParameterDict):
    """The rows of A: each tier (r_t, d_in), one below the other."""

    __call__ = nn.Module.__call__  # ParameterDict refuses to be called

    def whole(self) -> Tensor:
        """A, (r, d_in)."""
        return torch.cat(list(self.values()))

    def forward(self, x: Tensor) -> Tensor:
        """A x: (..., d_in) -> (..., r)."""
        down = self.whole()
        return functional.linear(x.to(down.dtype), down)


class Columns(nn.ParameterDict):
    """The columns of B: each tier (d_out, r_t), one beside the other.

    Args:
        scale: the fixed factor of B A.
    """

    __call__ = nn.Module.__call__

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def whole(self) -> Tensor:
        """B, (d_out, r), without the scale."""
        return torch.cat(list(self.values()), dim=1)

    def forward(self, narrow: Tensor, y: Tensor) -> Tensor:
        """Y + scale * B narrow: (..., r), (..., d_out) -> (..., d_out)."""
        return added(narrow, y, self.whole(), self.scale)


def added(narrow: Tensor, y: Tensor, up: Tensor, scale: float) -> Tensor:
    """Y + scale * up narrow."""
    flat = torch.addmm(
        y.reshape(-1, y.shape[-1]).to(up.dtype), narrow.reshape(-1, narrow.shape[-1]), up.t(), alpha=scale
    )
    return flat.view(y.shape).to(y.dtype)
