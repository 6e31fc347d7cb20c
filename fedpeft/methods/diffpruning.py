"""Diff pruning (Guo, Rush, Kim 2021): a change of every weight, most of which a relaxed L0 penalty closes.

    (W + z * d) x + b,    z = min(1, max(0, 3 s - 1.5)),    s = sigmoid(log u - log(1 - u) + a),    u uniform(0, 1)

d and a have W's shape; d begins at zero, a at 5, where nearly every gate is open. The loss takes penalty * sum of
sigmoid(a), the expected number of gates that are not closed (Louizos 2018 with the paper's l = -1.5, r = 1.5).
Outside of training steps there is no noise: s = sigmoid(a). 2 d_out d_in trained parameters a matrix, so the rounds
before pruning send twice the matrices.

After ``prune_round`` the coordinator keeps the largest |z * d|, closes every other gate and opens the kept ones for
good (``fedpeft.aggregate.between_rounds``); from then on a is not due, and d moves where the gate is open.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.diffpruning import DiffPruning
from fedpeft.config.model import Adapter
from fedpeft.entropy import generator
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.lowrank import width_of
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId

__all__ = ["DIFFPRUNING", "DiffPart", "attach_diffpruning"]

DIFFPRUNING = "diffpruning"
_OPEN = 5.0  # the paper's initial a
_STRETCH = 3.0  # r - l; l = -r, so the penalty's shift log(-l / r) is zero


class DiffPart(SteppedPart):
    """d and a of one matrix as ``change`` and ``gate``, (d_out, d_in) each.

    Args:
        path: of the matrix; names its draws.
        penalty: weight of the expected number of open gates.
    """

    def __init__(self, path: str, shape: tuple[int, int], device: torch.device, penalty: float) -> None:
        super().__init__()
        self._path, self._penalty = path, penalty
        self.change = nn.Parameter(torch.zeros(shape, device=device), requires_grad=False)
        self.gate = nn.Parameter(torch.full(shape, _OPEN, device=device), requires_grad=False)
        self._noise: Tensor | None = None  # log u - log(1 - u) of the step

    def begin_step(self, seed: int, step: int) -> None:
        """Draw u, while the gates are trained."""
        if self.gate.requires_grad:
            draw = generator(seed, DIFFPRUNING, self._path, step)
            values = draw.logistic(size=tuple(self.gate.shape)).astype(np.float32)
            self._noise = torch.from_numpy(values).to(self.gate.device)

    def after_backward(self) -> None:
        """No noise any more."""
        self._noise = None

    def penalty(self) -> Tensor | None:
        """The weighted expected number of open gates."""
        if not (self.gate.requires_grad and self._penalty):
            return None
        return self._penalty * torch.sigmoid(self.gate).sum()

    def open_share(self) -> Tensor:
        """Z, (d_out, d_in)."""
        logits = self.gate if self._noise is None else self.gate + self._noise
        return torch.clamp(_STRETCH * torch.sigmoid(logits) - _STRETCH / 2, 0.0, 1.0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + (z * d) x."""
        change = self.open_share() * self.change
        return y + functional.linear(x.to(change.dtype), change).to(y.dtype)


def attach_diffpruning(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft a change and a gate for every weight of the targets: d and a as a block each.

    Raises:
        ConfigInvalid: the model lacks a target.
    """
    settings = adapter.of(DiffPruning)
    if settings is None:
        return ()
    parts: list[DiffPart] = []
    for path, host in anatomy.target_modules(settings.targets, wanted_by="adapter.diffpruning"):
        shape = (width_of(host, "out_features"), width_of(host, "in_features"))
        part = DiffPart(path, shape, device_of(host), settings.penalty)
        graft_output(host, DIFFPRUNING, part)
        parts.append(part)
    return (
        Block(block_id=BlockId(DIFFPRUNING), method=DIFFPRUNING, parameters=tuple(part.change for part in parts)),
        Block(block_id=BlockId("diffpruning.gate"), method=DIFFPRUNING, parameters=tuple(part.gate for part in parts)),
    )
