"""FISH mask (Sung, Nair, Raffel 2021): train the few weights of the base that carry most Fisher information.

    (W + D) x + b,    D zero but at the k picked places of all matrices together

Round 1 picks: each device measures the empirical Fisher information of every weight of the targets, the mean over
its examples of the squared gradient of an example's loss, scaled to a largest value of one, in the block
``fish.fisher``; the secure sum averages it like any other. The coordinator takes the k largest
(``fedpeft.aggregate.between_rounds``), writes their places into the frozen block ``fish.places`` and clears the sum.
From round 2 on the k values of ``fish`` are trained and sent, nothing else.

The exact gradient of one example costs no second pass: for a linear module it is the product of its inputs and its
output's gradients over the tokens. Places are numbers of a matrix and of a weight in it; float32 holds them exactly
up to 2^24 weights per matrix. A matrix that is used twice, as k and v beside ``llama_adapter``, adds the squares of
both uses without their cross term: while the gate is zero, as when round 1 begins, there is none.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.fish import Fish, fish_picks
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.lowrank import width_of
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId

__all__ = ["FISH", "FishPart", "Picks", "attach_fish"]

FISH = "fish"
_LARGEST = 2**24


class Picks(nn.Module):
    """The k picked weights of the model: ``values`` (k,), ``places`` (2, k) of matrix and weight. Shared by all parts.

    Before anything is picked every place is the first weight of the first matrix, and every value zero.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count, device=device), requires_grad=False)
        self.places = nn.Parameter(torch.zeros(2, count, device=device), requires_grad=False)


class FishPart(SteppedPart):
    """One matrix: its share of the picks, and the Fisher information of its weights, ``fisher`` (d_out, d_in).

    Args:
        number: of the matrix, from 0.
        picks: the model's.
    """

    def __init__(self, number: int, shape: tuple[int, int], picks: Picks, device: torch.device) -> None:
        super().__init__()
        self._number, self.picks = number, picks
        self.fisher = nn.Parameter(torch.zeros(shape, device=device), requires_grad=False)
        self._squares: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + D x; measures the Fisher information on the way, while it is asked for."""
        chosen = self.picks.places[0] == self._number
        change = torch.zeros(self.fisher.numel(), dtype=self.fisher.dtype, device=self.fisher.device)
        change = change.index_add(0, self.picks.places[1][chosen].long(), self.picks.values[chosen])
        y = y + functional.linear(x.to(change.dtype), change.view(self.fisher.shape)).to(y.dtype)
        if self.fisher.requires_grad and torch.is_grad_enabled():
            y = y if y.requires_grad else y.requires_grad_()
            y.register_hook(lambda gradient: self._measure(x.detach(), gradient))  # type: ignore[no-untyped-call]
        return y

    @classmethod
    def finish(cls, parts: Sequence[Self]) -> None:
        """Relative to the largest value that this device found in the model."""
        measured = [(part, part._squares) for part in parts if part._squares is not None]
        largest = max((float(squares.max()) for _, squares in measured), default=0.0)
        for part, squares in measured:
            part.fisher.copy_(squares / largest if largest > 0 else squares)
            part._squares = None

    @torch.no_grad()
    def _measure(self, x: Tensor, gradient: Tensor) -> None:
        """Add the squared gradient of each example: x (b, s, d_in), gradient (b, s, d_out) of the batch's mean loss."""
        if self._squares is None:
            self._squares = torch.zeros_like(self.fisher)
        for inputs, outputs in zip(x, gradient, strict=True):
            self._squares.add_((outputs.t() @ inputs).square())


def attach_fish(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft picks and measurement on the targets: places frozen; values and the Fisher information of all weights.

    Raises:
        ConfigInvalid: the model lacks a target, or a matrix has more weights than a place can name.
    """
    settings = adapter.of(Fish)
    if settings is None:
        return ()
    hosts = list(anatomy.target_modules(settings.targets, wanted_by="adapter.fish"))
    shapes = [(width_of(host, "out_features"), width_of(host, "in_features")) for _, host in hosts]
    for (path, _), (rows, columns) in zip(hosts, shapes, strict=True):
        if rows * columns > _LARGEST:
            problem = Problem(
                where="adapter.fish.targets",
                expected=f"matrices of at most {_LARGEST} weights",
                found=f"{path} with {rows * columns}",
                remedy="Leave this target out, or use lora.",
            )
            raise ConfigInvalid("FISH mask cannot be attached to this model.", problems=[problem])
    device = device_of(hosts[0][1]) if hosts else torch.device("cpu")
    weights, layers = sum(rows * columns for rows, columns in shapes), len(anatomy.chosen_layers())
    picks = Picks(fish_picks(settings, weights, layers), device)
    parts: list[FishPart] = []
    for number, ((_, host), shape) in enumerate(zip(hosts, shapes, strict=True)):
        parts.append(FishPart(number, shape, picks, device_of(host)))
        graft_output(host, FISH, parts[-1])
    return (
        Block(block_id=BlockId("fish.places"), method=FISH, parameters=(picks.places,), trainable=False),
        Block(block_id=BlockId(FISH), method=FISH, parameters=(picks.values,)),
        Block(block_id=BlockId("fish.fisher"), method=FISH, parameters=tuple(part.fisher for part in parts)),
    )
