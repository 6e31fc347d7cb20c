"""LoRA (Hu et al. 2021) as nested column tiers over a shared frozen A.

W x + b  becomes  W x + b + scale * B A x,  A (r, d_in), B (d_out, r), B = 0 at the start.

A and B are cut into tiers: tier t of ranks (s, t] holds rows s..t of A and columns s..t of B, each its own
parameter and each factor's tier its own block. A device of rank r applies every tier and trains B's tiers
up to r. A is frozen and shared (FFA-LoRA, Sun et al. 2024), with orthonormal rows drawn from the run's
seed, so the sum of B deltas over any mix of ranks is exactly the mean of dW (peers.md, C.2 and C.4).
The scale is the same for every device, whatever tiers it trains: as configured, or with
``scaling = "rslora"`` (Kalajdzievski 2023) divided by the square root of the union's rank.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.blocks import LORA, carried_block, tier_block
from fedpeft.catalogue.lora import lora_tiers, scale_of
from fedpeft.config.model import Adapter, Lora
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.block import Block
from fedpeft.grafting.lowrank import graft_rows, width_of
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.grafting.tiers import Columns, Rows, added

__all__ = ["LoraPart", "attach_lora"]


class LoraPart(SteppedPart):
    """The tiers of one matrix: ``A.t2``, ``A.t4``, ... and ``B.t2``, ``B.t4``, ...

    Args:
        rows: A whole, (r, d_in).
        out_features: d_out.
        tiers: ranks at which the tiers end, ascending.
        scale: the fixed factor of B A.
        dropout: share of the inputs that A does not see in a training step.
        path: of the matrix; names its draws.
        carried_rank: columns that are applied and never trained here, after the last tier; both factors begin at zero.
    """

    def __init__(
        self,
        rows: Tensor,
        out_features: int,
        tiers: tuple[int, ...],
        scale: float,
        *,
        dropout: float = 0.0,
        path: str = "",
        carried_rank: int = 0,
    ) -> None:
        super().__init__()
        self._dropout, self._path = dropout, path
        self._seen: Tensor | None = None  # (d_in,): zero or 1 / (1 - dropout), in a training step
        self.A = Rows()
        self.B = Columns(scale)
        self.scale = scale
        for start, end in pairwise((0, *tiers)):
            self.A[f"t{end}"] = nn.Parameter(rows[start:end].clone(), requires_grad=False)
            self.B[f"t{end}"] = nn.Parameter(rows.new_zeros(out_features, end - start), requires_grad=False)
        self.carried = nn.ParameterDict()
        if carried_rank:
            self.carried["A"] = nn.Parameter(rows.new_zeros(carried_rank, rows.shape[1]), requires_grad=False)
            self.carried["B"] = nn.Parameter(rows.new_zeros(out_features, carried_rank), requires_grad=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r + c, d_in) and B (d_out, r + c): the tiers put together, and the carried columns after them."""
        carried = self.carried
        down = [*self.A.values(), *([carried["A"]] if "A" in carried else [])]
        up = [*self.B.values(), *([carried["B"]] if "B" in carried else [])]
        return torch.cat(down), torch.cat(up, dim=1)

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) with the scale in B."""
        down, up = self.factors()
        return down, self.scale * up

    def set_factors(self, down: Tensor, up: Tensor) -> None:
        """Cut A (r + c, d_in) and B (d_out, r + c) into tiers and carried; the caller holds ``torch.no_grad``."""
        if "A" in self.carried:
            rank = down.shape[0] - self.carried["A"].shape[0]
            self.carried["A"].copy_(down[rank:])
            self.carried["B"].copy_(up[:, rank:])
        for start, end in pairwise((0, *(int(key[1:]) for key in self.A))):
            self.A[f"t{end}"].copy_(down[start:end])
            self.B[f"t{end}"].copy_(up[:, start:end])

    @property
    def acts(self) -> bool:
        """See ``SteppedPart``: without dropout nothing is drawn."""
        return self._dropout > 0

    def begin_step(self, seed: int, step: int) -> None:
        """Draw which inputs A sees, while this part is trained."""
        if self._dropout and any(tier.requires_grad for tier in self.B.values()):
            first = next(iter(self.A.values()))
            seen = generator(seed, "lora.dropout", self._path, step).random(first.shape[1]) >= self._dropout
            kept = torch.from_numpy(seen).to(first.device, first.dtype)
            self._seen = kept / (1.0 - self._dropout)

    def after_backward(self) -> None:
        """A sees everything again."""
        self._seen = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Y + scale * B A x."""
        if self._seen is None and "A" not in self.carried:
            changed: Tensor = self.B(self.A(x), y)
            return changed
        down, up = self.factors()
        if self._seen is not None:
            down = down * self._seen
        return added(functional.linear(x.to(down.dtype), down), y, up, self.scale)


def attach_lora(anatomy: Anatomy, adapter: Adapter, seed: int) -> tuple[Block, ...]:
    """Graft LoRA on the targets of the chosen layers; A's and B's tiers as blocks.

    Raises:
        ConfigInvalid: the model lacks a target, or the rank is above a matrix's input width.
    """
    lora = adapter.of(Lora)
    if lora is None:
        return ()
    tiers = lora_tiers(lora)
    if list(tiers) != sorted(set(tiers)) or tiers[-1] != lora.rank:
        problem = Problem(where="adapter.lora.tiers", expected=f"ascending, ending in {lora.rank}", found=str(tiers))
        raise ConfigInvalid("The tiers of LoRA do not fit its rank.", problems=[problem])
    parts = graft_rows(
        anatomy,
        lora.targets,
        lambda path, host, rows: LoraPart(
            rows,
            width_of(host, "out_features"),
            tiers,
            scale_of(lora),
            dropout=lora.dropout,
            path=path,
            carried_rank=lora.carried_rank,
        ),
        method=LORA,
        rank=lora.rank,
        seed=seed,
        gaussian=lora.init == "gaussian",
    )
    first = [
        Block(
            block_id=tier_block("A", tier),
            method=LORA,
            parameters=tuple(part.A[f"t{tier}"] for part in parts),
            trainable=lora.train == "both" or lora.start == "gradient",
        )
        for tier in tiers
    ]
    carried = [
        Block(
            block_id=carried_block(factor),
            method=LORA,
            parameters=tuple(part.carried[factor] for part in parts),
            trainable=False,
        )
        for factor in (("A", "B") if lora.carried_rank else ())
    ]
    trained = [
        Block(block_id=tier_block("B", tier), method=LORA, parameters=tuple(part.B[f"t{tier}"] for part in parts))
        for tier in tiers
    ]
    return (*first, *trained, *carried)
