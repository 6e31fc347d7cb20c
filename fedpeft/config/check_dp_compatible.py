"""What [train] and [aggregate] may hold under [privacy]: an option is refused unless a reason why it keeps the promise
is written here.

The coordinator checks its run.toml with this, and every device the plan that reached it.

- ``client``: a device's contribution is clipped after whatever it trained, and noise is in the opened sum. So how it
  trains (FedProx, label calibration) costs nothing, nor does what the coordinator makes of the sum alone (server
  optimizers, FedSVD's normalisation): post-processing. Needed: the same summed blocks in every round, nothing summed
  beside.
- ``example``, ``person``: what leaves a device went through DP-SGD's steps, and what happens to it afterwards costs
  nothing (server optimizers). Needed: no quantity of the examples but the noisy sums enters a step, and nothing is
  carried over on the device but noise (``privacy.noise = "correlated"``, docs/adr/0062-correlated-noise.md).
"""

from collections.abc import Collection, Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.model import Adapter, Train
from fedpeft.config.rules import RULES, Unit, rules_that
from fedpeft.errors import ConfigInvalid, Problem

__all__ = ["expect_proved", "unproved"]

_SAME_BLOCKS = "the same summed blocks in every round: the noise is sized for them"


def unproved(adapter: Adapter, train: Train, aggregate: Aggregate, unit: Unit) -> Iterator[Finding]:
    """Every option that is not proved to keep the promise of this unit."""
    if unit not in RULES[aggregate.rule].proved:
        proved = ", ".join(rules_that(lambda traits: unit in traits.proved))
        yield _finding("aggregate.rule", f"one of {proved}", _why(aggregate), aggregate.rule, unit)
    for option, why in (
        ("a_round_every", _SAME_BLOCKS),
        ("auto_rank", _SAME_BLOCKS),
        ("fold_every", "each fold would keep the noise of its rounds for good"),
        ("buckets", "the noise is sized for one sum of the whole cohort"),
    ):
        if value := getattr(aggregate, option):
            yield _finding(f"aggregate.{option}", "0", why, f"{value:g}", unit)
    if aggregate.robust != "none":
        why = "a statistic of parts of the cohort is no mean of one noisy sum"
        yield _finding("aggregate.robust", '"none"', why, aggregate.robust, unit)
    if aggregate.local:
        yield _finding("aggregate.local", "no local blocks", _SAME_BLOCKS, str(list(aggregate.local)), unit)
    if adapter.head_start == "class-means":
        why = "class means are no step of training, and no other round sums the head alone"
        yield _finding("adapter.head_start", '"seed"', why, f'"{adapter.head_start}"', unit)
    if adapter.sketches:
        why = "the sketch of the gradient is no step of training, and no other round sums A"
        yield _finding("adapter.lora.start", '"drawn"', why, '"gradient"', unit)
    if train.scaffold:
        why = "controls carry a device's own gradients from one round to the next, past clip and noise"
        yield _finding("train.scaffold", "false", why, "true", unit)
    if unit != "client":
        yield from _unproved_steps(adapter, train, unit)


def _unproved_steps(adapter: Adapter, train: Train, unit: Unit) -> Iterator[Finding]:
    """What would be in a step of DP-SGD beside the noisy sum of clipped gradients."""
    if adapter.dtype != "float32":
        yield _finding("adapter.dtype", '"float32"', "each gradient is clipped and noised in it", adapter.dtype, unit)
    for method in sorted(method.name for method, _ in adapter.declared() if method.measures):
        why = "what this one measures or prunes in a step would be a release without noise"
        yield Finding(
            key=f"adapter.{method}",
            reads=("privacy.unit",),
            expected=f'methods that learn by gradients alone under privacy.unit = "{unit}": {why}',
            found=method,
            remedy="Take it out of the run; lora, dora, bitfit or ia3 can take its place.",
        )
    if train.label_calibration:
        why = "the shift follows from all of a device's labels, so an example's clipped gradient holds the others"
        yield _finding("train.label_calibration", "0", why, f"{train.label_calibration:g}", unit)
    if train.proximal_mu:
        why = "DP-SGD's step is the noisy sum alone, without a proximal term"
        yield _finding("train.proximal_mu", "0", why, f"{train.proximal_mu:g}", unit)


def expect_proved(
    adapter: Adapter, train: Train, aggregate: Aggregate, *, units: Collection[Unit], bucket: int
) -> None:
    """The device's check of a plan that reached it.

    Args:
        adapter, train, aggregate: of the plan.
        units: of which the round is private: by clients if its terms have noise, and as the plan says.
        bucket: that the device was put into; 0: none.

    Raises:
        ConfigInvalid: an option is not proved to keep the promise.
    """
    found = [finding for unit in units for finding in unproved(adapter, train, aggregate, unit)]
    problems = [Problem(where=one.key, expected=one.expected, found=one.found, remedy=one.remedy) for one in found]
    if bucket and units:
        problems.append(Problem(where="bucket", expected="none under privacy", found=str(bucket)))
    if problems:
        raise ConfigInvalid("This plan is not proved to keep its promise of privacy.", problems=problems)


def _why(aggregate: Aggregate) -> str:
    traits = RULES[aggregate.rule]
    if traits.individual:
        return f"{aggregate.rule} reads single devices' deltas"
    if traits.owner_weights or traits.own_weight:
        return "a sum of weights beside the deltas would be a release"
    return _SAME_BLOCKS if traits.trains == "alternate" else f"{aggregate.rule} is not shown to keep the promise"


def _finding(key: str, expected: str, why: str, found: str, unit: Unit) -> Finding:
    return Finding(
        key=key,
        reads=("privacy.unit",),
        expected=f'{expected} under privacy.unit = "{unit}": {why}',
        found=found,
        remedy='Leave it out, or set privacy.unit = "none": nothing is promised then.',
    )
