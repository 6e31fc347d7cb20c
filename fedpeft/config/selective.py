"""[adapter.diffpruning] and [adapter.fish]: the methods that pick single weights of the base."""

from pydantic import Field

from fedpeft.config.method import MethodSection
from fedpeft.config.section import TargetName

__all__ = ["DiffPruning", "Fish"]

_TARGETS = "The matrices whose weights may be picked."
_KEEP = "Share of these weights that are changed in the end."


class DiffPruning(MethodSection):
    """Diff pruning (Guo 2021): W + z * d with an L0-relaxed mask z; the coordinator fixes the mask at one round."""

    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    keep: float = Field(default=0.005, gt=0, lt=1, description=_KEEP)
    penalty: float = Field(default=1e-7, ge=0, description="Weight of the expected number of open gates in the loss.")
    prune_round: int = Field(default=4, ge=1, description="After this round the mask is fixed.")


class Fish(MethodSection):
    """FISH mask (Sung 2021): round 1 sums Fisher information; then the weights that have most of it are trained."""

    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    keep: float = Field(default=0.005, gt=0, lt=1, description=_KEEP)
