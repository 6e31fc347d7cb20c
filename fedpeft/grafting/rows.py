"""Some output rows of a wider matrix as a module of their own: q of a fused qkv takes what any matrix takes.

A view hangs at ``<path>.fedpeft_rows.<name>``, has the shape, weight and bias of its rows, and passes on the rows of
its host's output: whatever is grafted on it changes these and no others. Invariant, as for grafts: hooks read only the
module that they are handed; the host's tensors are those of every replica.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import device_of
from fedpeft.layout import Rows

__all__ = ["RowView", "is_turned", "place_of", "view_rows", "weight_of", "width_of"]

_VIEWS = "fedpeft_rows"


def width_of(host: nn.Module, side: str) -> int:
    """``in_features`` or ``out_features`` of a linear module, quantized, transposed or neither."""
    width = getattr(host, side, None)
    if width is None and is_turned(host):
        width = host.get_parameter("weight").shape[0 if side == "in_features" else 1]
    if not isinstance(width, int):
        raise ConfigInvalid(f"Expected a linear module with {side}, found {type(host).__name__}.")
    return width


def weight_of(host: nn.Module) -> Tensor:
    """(d_out, d_in) of a linear module; unpacked anew from a packed base."""
    weight = cast("Tensor", host.weight)
    return weight.t() if is_turned(host) else weight


def is_turned(host: nn.Module) -> bool:
    """Whether the module stores (d_in, d_out): transformers' Conv1D."""
    return type(host).__name__ == "Conv1D"


class RowView(nn.Module):
    """Rows ``index`` of a host.

    Args:
        host: the linear module.
        index: (d_out,), which of its output.
    """

    def __init__(self, host: nn.Module, index: Tensor) -> None:
        super().__init__()
        self._host = (host,)  # in a tuple, so that the host is no child of its own view
        self.register_buffer("index", index, persistent=False)
        self.in_features, self.out_features = width_of(host, "in_features"), len(index)

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in) of these rows."""
        return weight_of(self._host[0])[cast("Tensor", self.index)]

    @property
    def bias(self) -> Tensor | None:
        """(d_out,) of these rows."""
        bias = cast("Tensor | None", self._host[0].bias)
        return None if bias is None else bias[cast("Tensor", self.index)]

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The rows of the host's output, unchanged, or made anew from its input."""
        return functional.linear(x, self.weight, self.bias) if rows is None else rows


def view_rows(host: nn.Module, rows: Rows) -> RowView:
    """The view of these rows: the one that is there, or a new one."""
    if not hasattr(host, _VIEWS):
        host.add_module(_VIEWS, nn.ModuleDict())
        host.register_forward_hook(_after)
    views = cast("nn.ModuleDict", getattr(host, _VIEWS))
    name = f"{rows.start}_to_{rows.stop}_of_{rows.period}"
    if name not in views:
        rows_there = torch.tensor(rows.indices(width_of(host, "out_features")), device=device_of(host))
        views[name] = RowView(host, rows_there)
    return cast("RowView", views[name])


def place_of(model: nn.Module, path: str) -> tuple[str, Tensor | None]:
    """The path of the module that ``path`` names or views, and which of its output rows; None: all."""
    real, viewed, _ = path.partition(f".{_VIEWS}.")
    return real, cast("RowView", model.get_submodule(path)).get_buffer("index").cpu() if viewed else None


def _after(host: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for view in cast("nn.ModuleDict", getattr(host, _VIEWS)).values():
        index = cast("Tensor", view.index)
        output = output.index_copy(-1, index, view(args[0], output[..., index]))
    return output
