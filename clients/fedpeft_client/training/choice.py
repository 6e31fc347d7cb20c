"""What a device trains, as its site or the planner chose it."""

from dataclasses import dataclass

from fedpeft.catalogue import TIERED
from fedpeft.planner import CapacityPlan

__all__ = ["Capacity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a device can afford to train.

    Args:
        methods: PEFT methods, of those that the run's adapter has.
        rank: for lora, the tier at which it stops; None is the full rank.
        head: whether it trains the class head.
        checkpointing: whether it has the memory only if layers are computed again in the backward pass.
    """

    methods: tuple[str, ...]
    rank: int | None = None
    head: bool = True
    checkpointing: bool = False

    @classmethod
    def of(cls, plan: CapacityPlan) -> "Capacity":
        """What the planner chose."""
        work = plan.workload
        return cls(methods=work.methods, rank=work.rank, head=work.head, checkpointing=work.checkpointing)

    def __str__(self) -> str:
        names = [f"{method} r{self.rank}" if method in TIERED and self.rank else method for method in self.methods]
        return " + ".join(names) or "head"
