"""AdaLoRA (Zhang et al. 2023): low-rank changes in SVD form whose least important triplets are pruned.

    W x + b + scale * P diag(l * mask) Q x,    P (d_out, r), l (r,), Q (r, d_in)

l begins at zero, P and Q orthonormal from the run's seed; |P^T P - I|^2 + |Q Q^T - I|^2 keeps them near it. r (d_out
+ d_in + 1) trained parameters a matrix.

Who decides what: each device measures the importance of its triplets over its steps (section 3.2: sensitivity
|w dL/dw|, smoothed, times its smoothed uncertainty; summed over a triplet) and puts it, scaled to a largest value of
one, into the block ``adalora.score``, which the secure sum averages like any other; half of the agreed score stands
for the rounds before. The coordinator prunes by the agreed score (``fedpeft.aggregate.between_rounds``): in the rounds
of the schedule it sets the l of all but the most important triplets to zero, from where they may grow again; in the
last of them the choice becomes the frozen block ``adalora.mask``. No device keeps anything between rounds.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.config.model import AdaLora, Adapter
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.lowrank import initial_rows, width_of
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId

__all__ = ["ADALORA", "AdaLoraPart", "attach_adalora"]

ADALORA = "adalora"
_SMOOTHING = 0.85  # the paper's beta 1 and beta 2
_MEMORY = 0.5  # share of the agreed score in the next one


class AdaLoraPart(SteppedPart):
    """P, l and Q of one matrix as ``left``, ``values``, ``right``; ``score`` and ``mask`` of its triplets.

    Args:
        left: P, (d_out, r).
        right: Q, (r, d_in).
        settings: scale and weight of the orthogonality.
    """

    def __init__(self, left: Tensor, right: Tensor, settings: AdaLora) -> None:
        super().__init__()
        self.scale, self.orthogonality = settings.scale, settings.orthogonality
        self.left = nn.Parameter(left, requires_grad=False)
        self.values = nn.Parameter(left.new_zeros(right.shape[0]), requires_grad=False)
        self.right = nn.Parameter(right, requires_grad=False)
        self.score = nn.Parameter(left.new_zeros(right.shape[0]), requires_grad=False)
        self.mask = nn.Parameter(left.new_ones(right.shape[0]), requires_grad=False)
        self._smoothed: list[tuple[Tensor, Tensor]] = []  # sensitivity and uncertainty of l, P, Q

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """Q (r, d_in), and P diag(l * mask) (d_out, r) with the scale."""
        return self.right, self.scale * self.left * (self.values * self.mask)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + scale * P diag(l * mask) Q x."""
        narrow = functional.linear(x.to(self.right.dtype), self.right) * (self.values * self.mask)
        flat = y.reshape(-1, y.shape[-1]).to(self.left.dtype)
        moved = torch.addmm(flat, narrow.reshape(-1, narrow.shape[-1]), self.left.t(), alpha=self.scale)
        return moved.view(y.shape).to(y.dtype)

    def penalty(self) -> Tensor | None:
        """The weighted distance of P and Q from orthonormal ones."""
        if not (self.left.requires_grad and self.orthogonality):
            return None
        unit = torch.eye(self.right.shape[0], device=self.left.device, dtype=self.left.dtype)
        off = (self.left.t() @ self.left - unit).square().sum() + (self.right @ self.right.t() - unit).square().sum()
        return self.orthogonality * off

    @torch.no_grad()
    def after_backward(self) -> None:
        """Smooth sensitivity and uncertainty, while the score is asked for."""
        if not self.score.requires_grad:
            return
        weights = (self.values, self.left, self.right)
        if not self._smoothed:
            self._smoothed = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
        for weight, (sensitivity, uncertainty) in zip(weights, self._smoothed, strict=True):
            if weight.grad is None:
                continue
            now = (weight * weight.grad).abs()
            sensitivity.mul_(_SMOOTHING).add_(now, alpha=1 - _SMOOTHING)
            uncertainty.mul_(_SMOOTHING).add_((now - sensitivity).abs(), alpha=1 - _SMOOTHING)

    @classmethod
    def finish(cls, parts: Sequence[Self]) -> None:
        """Scores from this round's steps, relative to the largest importance that this device found in the model."""
        judged = [part for part in parts if part._smoothed]
        found = [part._importance() for part in judged]
        largest = max((float(importance.max()) for importance in found), default=0.0)
        for part, importance in zip(judged, found, strict=True):
            relative = importance / largest if largest > 0 else torch.zeros_like(importance)
            part.score.mul_(_MEMORY).add_(relative, alpha=1 - _MEMORY)
            part._smoothed = []

    def _importance(self) -> Tensor:
        """Of each triplet over the steps so far, (r,): that of l, and the means of P's and Q's."""
        values, left, right = (sensitivity * uncertainty for sensitivity, uncertainty in self._smoothed)
        return values + left.mean(dim=0) + right.mean(dim=1)


def attach_adalora(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft AdaLoRA on the targets of the chosen layers: the mask frozen; P, l, Q trained; the score measured.

    Raises:
        ConfigInvalid: the model lacks a target, or the rank is above a matrix's widths.
    """
    settings = adapter.of(AdaLora)
    if settings is None:
        return ()
    parts: list[AdaLoraPart] = []
    for path, host in anatomy.target_modules(settings.targets, wanted_by="adapter.adalora"):
        right, left = (
            torch.from_numpy(
                initial_rows(
                    f"adalora.{factor}",
                    path,
                    rank=settings.rank,
                    width=width_of(host, side),
                    seed=seed,
                    wanted_by="adapter.adalora",
                )
            ).to(device_of(host))
            for factor, side in (("Q", "in_features"), ("P", "out_features"))
        )
        part = AdaLoraPart(left.t().contiguous(), right, settings)
        graft_output(host, ADALORA, part)
        parts.append(part)
    trained = tuple(parameter for part in parts for parameter in (part.left, part.values, part.right))
    return (
        Block(
            block_id=BlockId("adalora.mask"), method=ADALORA, parameters=tuple(p.mask for p in parts), trainable=False
        ),
        Block(block_id=BlockId(ADALORA), method=ADALORA, parameters=trained),
        Block(block_id=BlockId("adalora.score"), method=ADALORA, parameters=tuple(p.score for p in parts)),
    )
