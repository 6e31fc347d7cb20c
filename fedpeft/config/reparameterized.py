"""[adapter.dora], [adapter.adalora], ...: the methods that change a matrix through a few factors."""

from pydantic import Field

from fedpeft.config.method import MethodSection
from fedpeft.config.section import TargetName

__all__ = ["AdaLora", "Dora", "DyLora", "QaLora", "ReLora", "Vera"]

_TARGETS = "Attention (q, k, v, o) and the MLP (up, down, gate); mapped to the model's own names."
_SCALE = "The factor of B A, the same for every device."


class Dora(MethodSection):
    """DoRA (Liu 2024): a matrix as magnitude times direction; B changes the direction, a delta a row the magnitude."""

    rank: int = Field(default=8, ge=1, le=1024, description="Of the change of direction.")
    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    scale: float = Field(default=2.0, gt=0, description=_SCALE)


class AdaLora(MethodSection):
    """AdaLoRA (Zhang 2023): W + scale * P diag(l) Q; the coordinator prunes the least important l over the rounds."""

    rank: int = Field(default=12, ge=1, le=1024, description="Triplets a matrix at the start.")
    target_rank: int = Field(default=8, ge=1, le=1024, description="Triplets a matrix at the end, on average.")
    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    scale: float = Field(default=2.0, gt=0, description="The factor of P diag(l) Q.")
    orthogonality: float = Field(
        default=0.1, ge=0, description="Weight of |P^T P - I|^2 + |Q Q^T - I|^2 in the loss (the paper's gamma)."
    )
    warmup_rounds: int = Field(default=1, ge=0, description="Rounds before anything is pruned.")
    prune_until: int = Field(
        default=4, ge=1, description="The budget falls, cubically, up to this round; then the choice is final."
    )


class DyLora(MethodSection):
    """DyLoRA (Valipour 2023): a step trains a random prefix of the ranks, so that every one is good."""

    rank: int = Field(default=8, ge=1, le=1024, description="The highest rank; prefixes 1..rank are drawn alike.")
    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    scale: float = Field(default=2.0, gt=0, description=_SCALE)


class ReLora(MethodSection):
    """ReLoRA (Lialin 2024) in blocks: every few rounds a fresh A and B; the changes add up to rank * cycles."""

    rank: int = Field(default=4, ge=1, le=1024, description="Of one cycle.")
    cycles: int = Field(default=4, ge=1, le=256, description="How many there are; the last goes on to the end.")
    rounds_each: int = Field(default=2, ge=1, description="Rounds a cycle lasts.")
    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    scale: float = Field(default=2.0, gt=0, description=_SCALE)


class QaLora(MethodSection):
    """QA-LoRA (Xu 2024): A reads sums of 32 inputs, so that B A merges into an int4-g32 base's minima, exactly."""

    rank: int = Field(default=8, ge=1, le=1024, description="At most a matrix's inputs / 32.")
    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    scale: float = Field(default=2.0, gt=0, description=_SCALE)


class Vera(MethodSection):
    """VeRA (Kopiczko 2024): one random A and B for all matrices, never sent; each trains two vectors."""

    rank: int = Field(default=64, ge=1, le=4096, description="Rows of the shared A.")
    targets: tuple[TargetName, ...] = Field(default=("q", "v"), min_length=1, description=_TARGETS)
    initial: float = Field(default=0.1, gt=0, description="What d begins with; b begins with zero.")
