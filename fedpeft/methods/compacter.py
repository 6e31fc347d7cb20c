"""Compacter (Karimi Mahabadi, Henderson, Ruder 2021): bottlenecks whose matrices are sums of Kronecker products.

    W = sum_i A_i (x) (s_i t_i),    A_i (n, n), s_i (rows / n, r), t_i (r, columns / n);  i = 1 .. n terms

The places and the form are Houlsby's: y + U act(D y + d) + u after attention and feed-forward, D and U each such a
sum. The slow weights A_i are one tensor for all matrices of all layers. A matrix of (a, b) takes r (a + b) parameters,
so the adapter takes n^3 + 2 L (2 r (m + w) + m + w). t of every U is zero at the start, so the model begins as the
base. The secure sum's mean is that of the parameters: the factors multiply.
"""

import math

import torch
from torch import Tensor, nn

from fedpeft.catalogue.compacter import Compacter
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.initial_values import drawn
from fedpeft.grafting.narrow import check_width, houlsby_places, narrow
from fedpeft.ids import BlockId

__all__ = ["COMPACTER", "CompacterPart", "SlowWeights", "attach_compacter", "kronecker_sum"]

COMPACTER = "compacter"


class SlowWeights(nn.Module):
    """A_1 .. A_n as ``rules``, (n, n, n)."""

    def __init__(self, rules: Tensor) -> None:
        super().__init__()
        self.rules = nn.Parameter(rules, requires_grad=False)


class CompacterPart(nn.Module):
    """One bottleneck: the factors s and t of D and U, d and u.

    Args:
        slow: the shared A.
        down: s (n, m / n, r) and t (n, r, w / n) of D.
        up: s (n, w / n, r) and t (n, r, m / n) of U.
        settings: the activation.
    """

    def __init__(
        self, slow: SlowWeights, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], settings: Compacter
    ) -> None:
        super().__init__()
        self.slow, self.activation = slow, settings.activation
        self.down_left, self.down_right = (nn.Parameter(factor, requires_grad=False) for factor in down)
        self.up_left, self.up_right = (nn.Parameter(factor, requires_grad=False) for factor in up)
        terms = len(slow.rules)
        self.down_bias = nn.Parameter(down[0].new_zeros(terms * down[0].shape[1]), requires_grad=False)
        self.up_bias = nn.Parameter(up[0].new_zeros(terms * up[0].shape[1]), requires_grad=False)

    def forward(self, _: Tensor, y: Tensor) -> Tensor:
        """Y + f(y)."""
        down = kronecker_sum(self.slow.rules, self.down_left, self.down_right)
        up = kronecker_sum(self.slow.rules, self.up_left, self.up_right)
        return y + narrow(y, down, up, self.activation, self.down_bias, self.up_bias).to(y.dtype)


def kronecker_sum(rules: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The sum over i of A_i (x) (s_i t_i), (n p, n q): A (n, n, n), s (n, p, r), t (n, r, q)."""
    fast = torch.bmm(left, right)  # (n, p, q)
    terms, rows, columns = fast.shape
    return torch.einsum("iab,ipq->apbq", rules, fast).reshape(terms * rows, terms * columns)


def attach_compacter(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft the bottlenecks on the chosen layers; one block: A, then D's, U's factors and biases of each.

    Raises:
        ConfigInvalid: the number of terms does not divide the widths, or the bottleneck is wider than the model.
    """
    settings = adapter.of(Compacter)
    if settings is None:
        return ()
    slow: SlowWeights | None = None
    parts: list[CompacterPart] = []
    for path, linear in houlsby_places(anatomy, wanted_by="adapter.compacter"):
        wide, terms = check_width(path, linear, settings.width, wanted_by="adapter.compacter"), settings.terms
        _check_terms(settings, wide)
        if slow is None:
            rules = drawn(seed, "compacter.rules", "", (terms, terms, terms), terms**-0.5, device_of(linear))
            slow = SlowWeights(rules)
        small, large, rank = settings.width // terms, wide // terms, settings.rank
        deviations = {"down_left": 1.0, "down_right": 1.0 / math.sqrt(wide * rank), "up_left": settings.width**-0.5}
        shapes = {"down_left": (small, rank), "down_right": (rank, large), "up_left": (large, rank)}
        factors = {
            name: drawn(seed, f"compacter.{name}", path, (terms, *shape), deviations[name], device_of(linear))
            for name, shape in shapes.items()
        }
        nothing = factors["up_left"].new_zeros(terms, rank, small)
        down, up = (factors["down_left"], factors["down_right"]), (factors["up_left"], nothing)
        parts.append(CompacterPart(slow, down, up, settings))
        graft_output(linear, COMPACTER, parts[-1])
    own = tuple(
        p
        for part in parts
        for p in (part.down_left, part.down_right, part.down_bias, part.up_left, part.up_right, part.up_bias)
    )
    shared = () if slow is None else (slow.rules,)
    return (Block(block_id=BlockId(COMPACTER), method=COMPACTER, parameters=(*shared, *own)),)


def _check_terms(settings: Compacter, wide: int) -> None:
    for what, width in (("adapter.compacter.width", settings.width), ("the model's width", wide)):
        if width % settings.terms:
            problem = Problem(
                where="adapter.compacter.terms", expected=f"a divisor of {what}, {width}", found=str(settings.terms)
            )
            raise ConfigInvalid("The Kronecker products do not add up to the matrix.", problems=[problem])
