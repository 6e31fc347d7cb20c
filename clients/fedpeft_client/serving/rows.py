"""Several LoRA adapters on one base, each row of a batch through its own.

A matrix W on which any of the adapters sits computes for row b of a batch, with the factors of that row's adapter,

    W x_b + B_b (A_b x_b),    x (b, s, d_in),  A (b, r, d_in),  B (b, d_out, r):  two batched products,

whatever the number of adapters. Factors of lower rank are padded with zeros, those of an adapter that does not change
the matrix are zero. A head is a module of each adapter's own: rows of one adapter go through it together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.errors import SpecMismatch
from fedpeft.export.peft_format import to_peft
from fedpeft.grafting.own_form import PREFIX

if TYPE_CHECKING:
    from fedpeft.methods import UnionAdapter

__all__ = ["Factors", "RowAdapters", "factors_of"]

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What one adapter adds to the base.

    Args:
        changes: path of a matrix -> A (r, d_in) and B (d_out, r) with the scale in B.
        heads: path -> the module that stands there, the adapter's own; empty for a language model.
    """

    changes: Mapping[str, tuple[Tensor, Tensor]]
    heads: Mapping[str, nn.Module]


def factors_of(union: "UnionAdapter") -> Factors | None:
    """The adapter as low-rank factors and a head; None where it is more than that."""
    form = to_peft(union)
    settings = form.settings
    heads = {name.rpartition(".")[0] for name in union.anatomy.head}
    whole = {str(name) for name in cast("list[str]", settings.get("modules_to_save") or [])}
    complete = {block.method for block in union.spec.blocks} <= form.methods
    if (
        not complete
        or settings["peft_type"] != "LORA"
        or settings.get("use_dora")
        or settings.get("target_parameters")  # tokens of different rows meet in one expert
        or settings.get("bias") != "none"
        or not all(any(path == one or path.startswith(f"{one}.") for path in heads) for one in whole)
    ):
        return None
    scale = float(str(settings["lora_alpha"])) / int(str(settings["r"]))
    changes = {}
    for name, down in form.tensors.items():
        if name.endswith(_DOWN):
            path = name.removeprefix(PREFIX).removesuffix(_DOWN)
            up = form.tensors[f"{PREFIX}{path}{_UP}"]
            changes[path] = (torch.from_numpy(down.copy()), scale * torch.from_numpy(up.copy()))
    return Factors(changes=changes, heads={path: union.model.get_submodule(path) for path in sorted(whole)})


class RowAdapters:
    """A base with places for adapters. Belongs to one thread at a time.

    Args:
        model: the base for a task, without grafts; hooks are put on it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._adapters: list[Factors] = []
        self._matrices: dict[str, _Matrix] = {}
        self._heads: dict[str, _Heads] = {}
        self._chosen: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._adapters)

    def put(self, factors: Factors, place: int | None = None) -> int:
        """Add an adapter, or put it in the place of an earlier one; its place.

        Raises:
            SpecMismatch: a matrix has another shape here.
        """
        self._expect_shapes(factors)
        self._adapters = list(self._adapters)
        if place is None:
            place = len(self._adapters)
            self._adapters.append(factors)
        else:
            self._adapters[place] = factors
        for path in {path for one in self._adapters for path in one.changes}:
            host = self.model.get_submodule(path)
            self._matrices.setdefault(path, _Matrix(host)).stack([one.changes.get(path) for one in self._adapters])
        for path in factors.heads:
            if path not in self._heads:
                self._heads[path] = _Heads()
                self.model.set_submodule(path, self._heads[path])
            self._heads[path].put(place, factors.heads[path])
        self._chosen = ()
        return place

    def choose(self, places: Sequence[int]) -> None:
        """From now on row i of a batch goes through the adapter at ``places[i]``."""
        chosen = tuple(places)
        if chosen == self._chosen:
            return
        self._chosen = chosen
        for matrix in self._matrices.values():
            matrix.choose(chosen)
        for head in self._heads.values():
            head.chosen = chosen

    def _expect_shapes(self, factors: Factors) -> None:
        for path, (down, up) in factors.changes.items():
            weight = getattr(self.model.get_submodule(path), "weight", None)
            if weight is None or sorted(weight.shape) != sorted((up.shape[0], down.shape[1])):
                raise SpecMismatch(f"Expected an adapter of this base, found one whose {path} has another shape.")


class _Matrix:
    """What the adapters add to one matrix."""

    def __init__(self, host: nn.Module) -> None:
        self._down = self._up = torch.empty(0)
        self._rows: tuple[Tensor, Tensor] | None = None
        host.register_forward_hook(self._after)

    def stack(self, factors: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        present = [one for one in factors if one is not None]
        rank = max(down.shape[0] for down, _ in present)
        none = (present[0][0].new_zeros(0, present[0][0].shape[1]), present[0][1].new_zeros(present[0][1].shape[0], 0))
        every = [none if one is None else one for one in factors]
        # (n, d_in, r) and (n, r, d_out): as the products take them
        self._down = torch.stack([functional.pad(down, (0, 0, 0, rank - down.shape[0])).t() for down, _ in every])
        self._up = torch.stack([functional.pad(up, (0, rank - up.shape[1])).t() for _, up in every])
        self._rows = None

    def choose(self, chosen: tuple[int, ...]) -> None:
        if len(set(chosen)) == 1:
            self._rows = self._down[chosen[0]], self._up[chosen[0]]  # one for all rows: plain products
        else:
            index = torch.tensor(chosen)
            self._rows = self._down[index], self._up[index]

    def _after(self, _host: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._rows is None:
            return output
        down, up = self._rows
        if down.ndim == 2:
            return output + (args[0].float() @ down) @ up
        return torch.baddbmm(output, torch.bmm(args[0].float(), down), up)  # (b, s, d_in) -> (b, s, d_out)


class _Heads(nn.Module):
    """Stands for a head: rows of one adapter go through that adapter's together."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, nn.Module] = {}
        self.chosen: tuple[int, ...] = ()

    def put(self, place: int, head: nn.Module) -> None:
        """Set the head of one adapter."""
        self._of[place] = head

    def forward(self, states: Tensor) -> Tensor:
        """(b, ...) -> (b, ..., classes); of an adapter with fewer classes than another the rest is minus infinity."""
        present = sorted(set(self.chosen))
        if len(present) == 1:
            return cast("Tensor", self._of[present[0]](states))
        places = torch.tensor(self.chosen)
        found = {one: self._of[one](states[places == one]) for one in present}
        widest = max(part.shape[-1] for part in found.values())
        first = found[present[0]]
        output: Tensor = first.new_full((len(states), *first.shape[1:-1], widest), -torch.inf)
        for one, part in found.items():
            output[places == one, ..., : part.shape[-1]] = part
        return output
