"""From a round's sums to the next global state, by the run's rule.

The table ``STEPS`` is the whole dispatch: to add a rule, write its step, give it a line here and its traits in
``fedpeft.config.rules``.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.gauge import fix_gauge, fold_and_reseed
from fedpeft.aggregate.linear import mean, owner_mean, zero_padded
from fedpeft.aggregate.products import fedex, flexlora, flora, lora_fair
from fedpeft.aggregate.robust import Update, robust_mean
from fedpeft.aggregate.sums import RoundSums
from fedpeft.config.model import Aggregate
from fedpeft.config.rules import RuleName, factors_of

__all__ = ["STEPS", "proposal", "robust_proposal", "settled"]

Step = Callable[[AdapterState, RoundSums], AdapterState]

STEPS: Mapping[RuleName, Step] = MappingProxyType(
    {
        "nested": mean,
        "fedit": zero_padded,
        "hetlora": zero_padded,
        "rbla": owner_mean,
        "ffa": mean,
        "rolora": mean,
        "lora-a2": mean,
        "fedsa": zero_padded,
        "fedsvd": mean,
        "fedex": fedex,
        "flora": flora,
        "flexlora": flexlora,
        "lora-fair": lora_fair,
        "fedrot": zero_padded,
    }
)


def proposal(aggregate: Aggregate, state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """What the rule makes of the sums, before a server optimizer and before the gauge."""
    return STEPS[aggregate.rule](state, round_sums)


def robust_proposal(aggregate: Aggregate, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
    """The state moved by a robust statistic of mean deltas (``fedpeft.aggregate.robust``), for rules of one mean."""
    step = robust_mean(aggregate, updates)
    return mean(state, RoundSums(sums=step, total_weight=1.0, owner_weights={}))


def settled(aggregate: Aggregate, state: AdapterState, *, round_id: int, seed: int) -> AdapterState:
    """The state made ready for round ``round_id + 1``: gauge fixed, folded; mostly unchanged.

    Post-processing of sums: no device's data is touched again.
    """
    rule = aggregate.rule
    if rule == "fedsvd":
        return fix_gauge(state, frozen="A")
    if rule != "nested":
        return state
    if aggregate.fold_every and round_id % aggregate.fold_every == 0:
        return fold_and_reseed(state, seed=seed, round_id=round_id)
    if aggregate.auto_rank and round_id == aggregate.auto_rank_after:
        return fix_gauge(state, frozen="A")
    now, following = (factors_of(rule, r, a_round_every=aggregate.a_round_every) for r in (round_id, round_id + 1))
    return state if now == following else fix_gauge(state, frozen="A" if "B" in following else "B")
