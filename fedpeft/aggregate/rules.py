"""From a round's sums to the next global state, by the run's rule.

The table ``STEPS`` is the whole dispatch, on the coordinator and on the device. To add a rule: its functions, its line
here, and its traits in ``fedpeft.config.rules``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate.device_side import keep_columns, product_norm, rotated
from fedpeft.aggregate.factor_normalisation import fold_and_reseed, normalise_factors
from fedpeft.aggregate.linear import mean, owner_mean, padded_values, zero_padded
from fedpeft.aggregate.products import fedex, flexlora, flora, lora_fair
from fedpeft.aggregate.robust import Update, robust_mean
from fedpeft.aggregate.sums import RoundSums
from fedpeft.config.model import Aggregate
from fedpeft.config.rules import RULE_PLUGINS, factors_of
from fedpeft.errors import RunFailed, foreign
from fedpeft.ids import BlockId
from fedpeft.plugins import named

__all__ = ["STEPS", "Steps", "proposal", "robust_proposal", "rule_weight", "settled"]

Vector = npt.NDArray[np.float32]
Deltas = Mapping[BlockId, Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A rule's functions.

    Args:
        step: on the coordinator, from a round's sums to the next state.
        settle: on the coordinator, the state made ready for the round after ``round_id``; None: it is.
        keep: on the device, what is left of its deltas at its rank; None: all.
        before_sum: on the device, its deltas as they go into the sum; None: as they are. Keeps the sum linear.
        weigh: on the device, its own weight in (0, 1]; None: the run's ``aggregate.weight`` decides.
    """

    step: Callable[[AdapterState, RoundSums], AdapterState]
    settle: Callable[[Aggregate, AdapterState, int, int], AdapterState] | None = None
    keep: Callable[[AdapterSpec, AdapterState, Deltas, int], dict[BlockId, Vector]] | None = None
    before_sum: Callable[[AdapterState, Deltas], dict[BlockId, Vector]] | None = None
    weigh: Callable[[AdapterState, Deltas], float] | None = None


def _settle_nested(aggregate: Aggregate, state: AdapterState, round_id: int, seed: int) -> AdapterState:
    """Folded, or the factors normalised where columns are chosen and where A and B change places."""
    if aggregate.fold_every and round_id % aggregate.fold_every == 0:
        return fold_and_reseed(state, seed=seed, round_id=round_id)
    if aggregate.auto_rank and round_id == aggregate.auto_rank_after:
        return normalise_factors(state, frozen="A")
    every = aggregate.a_round_every
    now, following = (factors_of(aggregate.rule, r, a_round_every=every) for r in (round_id, round_id + 1))
    return state if now == following else normalise_factors(state, frozen="A" if "B" in following else "B")


def _by_plugin(name: str, state: AdapterState, sums: RoundSums) -> AdapterState:
    """The step of another package's rule.

    Raises:
        RunFailed: it failed, or made no finite state of this adapter.
    """
    step = named(RULE_PLUGINS[name].step)
    with foreign(lambda said: RunFailed(f"The rule {name} failed: {said}.")):
        made = step(state, sums)
    if not isinstance(made, AdapterState) or made.spec != state.spec:
        found = f"{type(made).__name__}" if not isinstance(made, AdapterState) else "one of another adapter"
        raise RunFailed(f"Expected the rule {name} to make a state of the run's adapter, found {found}.")
    if not all(np.isfinite(vector).all() for vector in made.vectors.values()):
        raise RunFailed(f"Expected finite values after the step of the rule {name}; the state was not changed.")
    return made


STEPS: Mapping[str, Steps] = MappingProxyType(
    {
        "nested": Steps(step=mean, settle=_settle_nested),
        "fedit": Steps(step=zero_padded),
        "hetlora": Steps(step=padded_values, weigh=product_norm),
        "rbla": Steps(step=owner_mean),
        "ffa": Steps(step=mean),
        "rolora": Steps(step=mean),
        "lora-a2": Steps(step=mean, keep=keep_columns),
        "fedsa": Steps(step=zero_padded),
        "fedsvd": Steps(step=mean, settle=lambda _, state, round_id, seed: normalise_factors(state, frozen="A")),
        "fedex": Steps(step=fedex),
        "flora": Steps(step=flora),
        "flexlora": Steps(step=flexlora),
        "lora-fair": Steps(step=lora_fair),
        "fedrot": Steps(step=zero_padded, before_sum=rotated),
        **{name: Steps(step=partial(_by_plugin, name)) for name in RULE_PLUGINS},
    }
)


def proposal(aggregate: Aggregate, state: AdapterState, round_sums: RoundSums) -> AdapterState:
    """What the rule makes of the sums, before a server optimizer and before factors are normalised."""
    return STEPS[aggregate.rule].step(state, round_sums)


def rule_weight(aggregate: Aggregate, state: AdapterState, deltas: Deltas) -> float | None:
    """The weight that the rule itself gives a device, in (0, 1]; None: the run's ``aggregate.weight`` decides."""
    weigh = STEPS[aggregate.rule].weigh
    return None if weigh is None else weigh(state, deltas)


def robust_proposal(aggregate: Aggregate, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
    """The state moved by a robust statistic of mean deltas (``fedpeft.aggregate.robust``), for rules of one mean."""
    step = robust_mean(aggregate, updates)
    return mean(state, RoundSums(sums=step, total_weight=1.0, owner_weights={}))


def settled(aggregate: Aggregate, state: AdapterState, *, round_id: int, seed: int) -> AdapterState:
    """The state made ready for round ``round_id + 1``: factors normalised, folded; mostly unchanged.

    Post-processing of sums: no device's data is touched again.
    """
    settle = STEPS[aggregate.rule].settle
    return state if settle is None else settle(aggregate, state, round_id, seed)
