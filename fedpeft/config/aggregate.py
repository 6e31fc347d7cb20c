"""[aggregate] in run.toml: from block sums to the next global state."""

from typing import Literal

from pydantic import Field

from fedpeft.catalogue.section import Section
from fedpeft.config.rules import RuleName

__all__ = ["Aggregate"]


class Aggregate(Section):
    """From block sums to the next global state (docs/aggregation.md)."""

    rule: RuleName = Field(
        default="nested",
        description="How LoRA's factors of devices of unequal rank become one state; `nested` is the default of "
        "docs/design.md, section 3, the others are the field's.",
    )
    a_round_every: int = Field(
        default=0, ge=0, le=1000, description="For `nested`: every so many rounds A is trained instead of B; 0: never."
    )
    fold_every: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="For `nested`, without privacy: every so many rounds B A is folded into a carried adapter of rank "
        "adapter.lora.carried_rank and A drawn anew; 0: never.",
    )
    auto_rank: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="For `nested`: after auto_rank_after rounds the factors are normalised, and a LoRA tier whose "
        "share of the squared singular values is below this is not trained any more; 0: every tier is trained.",
    )
    auto_rank_after: int = Field(default=3, ge=1, le=1000, description="For auto_rank: rounds before it decides.")
    weight: Literal["examples", "uniform"] = Field(
        default="examples", description="By how many examples a device has, or all alike."
    )
    max_weight: int = Field(
        default=10_000,
        ge=1,
        description="Examples above this count no more: no device outweighs the rest without bound.",
    )
    server_learning_rate: float = Field(default=1.0, gt=0, description="How far the mean moves the global state.")
    server_optimizer: Literal["none", "momentum", "adam", "yogi", "adagrad"] = Field(
        default="none",
        description="On the coordinator, over the mean delta: FedAvgM, FedAdam, FedYogi, FedAdagrad. `none`: untuned "
        "adaptive ones hurt; they want a server_learning_rate near 0.01.",
    )
    server_beta1: float = Field(default=0.9, ge=0, lt=1, description="Momentum of the server optimizer.")
    server_beta2: float = Field(default=0.99, ge=0, lt=1, description="Decay of the second moment of adam and yogi.")
    server_tau: float = Field(default=1e-3, gt=0, description="Added to the root of the second moment.")
    robust: Literal["none", "median", "trimmed-mean", "krum", "norm-bound"] = Field(
        default="none",
        description="A statistic that bad devices cannot drag away, in place of the mean: over `buckets` of secure "
        "sums, or over single devices in a simulation without secure sum.",
    )
    buckets: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="For `robust` under secure aggregation: random groups of at least secagg.min_cohort devices, each "
        "with a sum of its own; more than twice as many as devices that may be bad.",
    )
    bad_fraction: float = Field(
        default=0.2, gt=0, lt=0.5, description="For trimmed-mean and krum: the share of updates that may be bad."
    )
    local: tuple[str, ...] = Field(
        default=(),
        description="Blocks that stay on the device and are never summed (personalisation): a method, `head`, or one "
        "factor, `lora.A` or `lora.B`.",
    )
    norm_bound: float = Field(
        default=0.0, ge=0, description="For norm-bound: the largest L2 norm of an update; 0: the median of the norms."
    )
