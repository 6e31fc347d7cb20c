"""The aggregation rules that a run may choose, and what each asks of devices and of the secure sum.

Facts only: the table of ``fedpeft.aggregate.rules`` carries each rule's functions. They live here because the
configuration check, the coordinator and the device must agree on them. No other code compares a rule's name.
Formulas and published numbers: docs/aggregation.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from fedpeft.plugins import loaded

__all__ = [
    "RULES",
    "RULE_PLUGINS",
    "Factor",
    "RuleName",
    "RulePlugin",
    "RuleTraits",
    "Unit",
    "factors_of",
    "rules_that",
]

Factor = Literal["A", "B"]
Unit = Literal["client", "example", "person"]
"""Of differential privacy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTraits:
    """What a rule needs.

    Args:
        source: who published it.
        trains: LoRA's factors that rounds train: B alone, both in each round, or one after the other.
        truncated: a device's forward pass uses its own columns only; otherwise it applies the whole adapter.
        owner_weights: the sum of weights of each block's owners is needed beside the cohort's.
        own_weight: devices weigh themselves by something that is no count and changes every round; they then add
            weighted values instead of weighted changes, so that the cohort's sum of weights is enough.
        individual: why single devices' deltas are needed; empty: sums are enough.
        refactors: the rule replaces both factors by another product; a server optimizer has no meaning then.
        carries: it folds what the factors cannot hold into a carried adapter (``adapter.lora.carried_rank``).
        one_mean: its step is one mean of deltas, which a robust statistic or a control can stand beside.
        proved: the units of privacy whose promise it is shown to keep: it takes one mean of the same blocks in every
            round, and under DP-SGD its tests train it.
        options: the options of [aggregate] that are this rule's alone.
        local: blocks that it leaves on the device.
        any_adapter: it has a meaning without LoRA too.
        every_column: a device trains all columns and then keeps as many as its rank pays for.
        elementwise: its step is additions, products and roots coordinate by coordinate, so it repeats to the bit on any
            machine, and devices can take it after the coordinator (``fedpeft.round.transition``).
    """

    source: str
    trains: Literal["B", "both", "alternate"]
    truncated: bool = False
    owner_weights: bool = False
    own_weight: bool = False
    individual: str = ""
    refactors: bool = False
    carries: bool = False
    one_mean: bool = False
    proved: frozenset[Unit] = frozenset()
    options: frozenset[str] = frozenset()
    local: tuple[str, ...] = ()
    any_adapter: bool = False
    every_column: bool = False
    elementwise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePlugin:
    """A rule of another package (docs/plugins.md): post-processing of a round's sums, and nothing on a device.

    No promise of privacy is proved for it.

    Args:
        step: ``module:function`` from the state (``AdapterState``) and a round's sums (``RoundSums``) to the next
            state; imported where a state is made.
        source: who published it.
        trains, truncated, owner_weights, refactors, any_adapter, elementwise: as of ``RuleTraits``.
    """

    step: str
    source: str = "a plug-in"
    trains: Literal["B", "both", "alternate"] = "both"
    truncated: bool = False
    owner_weights: bool = False
    refactors: bool = False
    any_adapter: bool = True
    elementwise: bool = False

    @property
    def traits(self) -> RuleTraits:
        """What it needs."""
        return RuleTraits(
            source=self.source,
            trains=self.trains,
            truncated=self.truncated,
            owner_weights=self.owner_weights,
            refactors=self.refactors,
            any_adapter=self.any_adapter,
            elementwise=self.elementwise,
        )


_PRODUCTS = "it needs each device's product B A, and a sum of A's and of B's does not determine the sum of products"

_OWN: Mapping[str, RuleTraits] = MappingProxyType(
    {
        "nested": RuleTraits(
            source="docs/design.md, section 3",
            trains="B",
            one_mean=True,
            proved=frozenset({"client", "example", "person"}),
            options=frozenset({"a_round_every", "fold_every", "auto_rank"}),
            any_adapter=True,
            elementwise=True,
        ),
        "fedit": RuleTraits(
            source="Zhang 2024, zero-padded", trains="both", truncated=True, owner_weights=True, elementwise=True
        ),
        "hetlora": RuleTraits(source="Cho 2024", trains="both", truncated=True, own_weight=True),
        "rbla": RuleTraits(
            source="Tavallaie 2024", trains="both", truncated=True, owner_weights=True, elementwise=True
        ),
        "ffa": RuleTraits(
            source="Sun 2024", trains="B", truncated=True, one_mean=True, proved=frozenset({"client"}), elementwise=True
        ),
        "rolora": RuleTraits(source="Chen 2025", trains="alternate", truncated=True, one_mean=True, elementwise=True),
        "lora-a2": RuleTraits(
            source="Koo 2025", trains="alternate", one_mean=True, every_column=True, elementwise=True
        ),
        "fedsa": RuleTraits(
            source="Guo 2025", trains="both", truncated=True, owner_weights=True, local=("lora.B",), elementwise=True
        ),
        "fedsvd": RuleTraits(
            source="Lee 2025", trains="B", truncated=True, refactors=True, proved=frozenset({"client"})
        ),
        "fedex": RuleTraits(
            source="Singhal 2025", trains="both", truncated=True, individual=_PRODUCTS, refactors=True, carries=True
        ),
        "flora": RuleTraits(
            source="Wang 2024",
            trains="both",
            truncated=True,
            individual="stacking places every device's factors side by side, which is the individual update itself",
            refactors=True,
            carries=True,
        ),
        "flexlora": RuleTraits(source="Bai 2024", trains="both", truncated=True, individual=_PRODUCTS, refactors=True),
        "lora-fair": RuleTraits(
            source="Bian 2025", trains="both", truncated=True, individual=_PRODUCTS, refactors=True
        ),
        "fedrot": RuleTraits(
            source="FedRot-LoRA 2026", trains="both", truncated=True, owner_weights=True, elementwise=True
        ),
    }
)


RULE_PLUGINS: Mapping[str, RulePlugin] = loaded("rule", RulePlugin, taken=_OWN)
"""Rules of other packages, by name."""

RULES: Mapping[str, RuleTraits] = MappingProxyType(
    {**_OWN, **{name: plugin.traits for name, plugin in RULE_PLUGINS.items()}}
)
"""All rules, by name."""

if TYPE_CHECKING:
    RuleName: TypeAlias = str
else:
    RuleName = Literal[tuple(RULES)]


def rules_that(has: Callable[[RuleTraits], object]) -> tuple[str, ...]:
    """The rules with a trait, by name.

    Example:
        >>> rules_that(lambda traits: "example" in traits.proved)
        ('nested',)
    """
    return tuple(sorted(name for name, traits in RULES.items() if has(traits)))


def factors_of(rule: str, round_id: int, *, a_round_every: int = 0) -> frozenset[Factor]:
    """LoRA's factors that round ``round_id`` (from 1) trains.

    Args:
        a_round_every: for ``nested``: every so many rounds it trains A instead of B; 0: never.

    Example:
        >>> sorted(factors_of("rolora", 1)), sorted(factors_of("rolora", 2)), sorted(factors_of("fedit", 1))
        (['B'], ['A'], ['A', 'B'])
    """
    traits = RULES[rule]
    period = 2 if traits.trains == "alternate" else a_round_every if "a_round_every" in traits.options else 0
    if traits.trains == "both":
        return frozenset(("A", "B"))
    # B first: it starts at zero, and while it is zero A has no gradient.
    return frozenset(("A",)) if period and round_id % period == 0 else frozenset(("B",))
