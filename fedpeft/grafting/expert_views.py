"""One expert's matrix as a module of its own, so that a method sits on it as on any linear module.

A view hangs at ``<experts>.fedpeft_experts.<tensor>.<number>``. It gets the tokens that the router sends to the expert,
(n, d_in), and makes the product (``fedpeft.base.experts``). Invariant, as for grafts: hooks read only the module that
they are handed.
"""

from typing import NamedTuple, cast

from torch import Tensor, nn

from fedpeft.base.experts import expert_tensors, matrix_of, plain_product

__all__ = ["ExpertPlace", "ExpertView", "expert_place", "view_expert"]

_VIEWS = "fedpeft_experts"


class ExpertPlace(NamedTuple):
    """Where a view's matrix is.

    Args:
        experts: path of the module that holds all experts' matrices.
        tensor: the name of the parameter there.
        number: which of its matrices.
    """

    experts: str
    tensor: str
    number: int


class ExpertView(nn.Module):
    """One expert's matrix.

    Args:
        experts: the module that holds it.
        tensor: the name of the parameter there.
        index: which of its matrices.
    """

    def __init__(self, experts: nn.Module, tensor: str, index: int) -> None:
        super().__init__()
        self._experts = (experts,)  # in a tuple, so that it is no child of its own view
        self._tensor, self._index = tensor, index
        _, one, other = expert_tensors(experts)[tensor]
        self.out_features, self.in_features = (other, one) if experts.is_transposed else (one, other)

    @property
    def experts(self) -> nn.Module:
        """The module that holds the matrix."""
        return self._experts[0]

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in)."""
        return matrix_of(self.experts, self._tensor, self._index)

    @property
    def bias(self) -> Tensor | None:
        """(d_out,)."""
        held = self.experts.has_bias
        return cast("Tensor", getattr(self.experts, f"{self._tensor}_bias"))[self._index] if held else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, d_in) -> (n, d_out)."""
        return plain_product(self.experts, self._tensor, self._index, x)


def view_expert(experts: nn.Module, tensor: str, index: int) -> ExpertView:
    """The view of this matrix: the one that is there, or a new one."""
    if not hasattr(experts, _VIEWS):
        experts.add_module(_VIEWS, nn.ModuleDict())
    tensors = cast("nn.ModuleDict", getattr(experts, _VIEWS))
    if tensor not in tensors:
        # All of them at once: the forward pass asks for every expert of a tensor that has views.
        count = expert_tensors(experts)[tensor][0]
        tensors[tensor] = nn.ModuleDict({str(one): ExpertView(experts, tensor, one) for one in range(count)})
    return cast("ExpertView", cast("nn.ModuleDict", tensors[tensor])[str(index)])


def expert_place(path: str) -> ExpertPlace | None:
    """Which matrix a path names; None: it is no expert's."""
    experts, viewed, rest = path.partition(f".{_VIEWS}.")
    if not viewed:
        return None
    tensor, _, index = rest.partition(".")
    return ExpertPlace(experts, tensor, int(index.partition(".")[0]))
