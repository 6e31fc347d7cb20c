"""DP-SGD's promise on the device, by examples or people: noise, ledger, refusals, and what it states about itself.

The coordinator proposes a budget; the device alone knows how many examples (people) it has, so it finds its own noise
multiplier, charges its own ledger before its update leaves, and refuses a round past the run's budget or its site's.
A device's size class counts as public (``fedpeft.round.size_class``): its weight, its sampling rate, its noise and what
it refuses follow from that alone, so its statements tell no more.
"""

import math
from collections.abc import Callable
from functools import lru_cache

from fedpeft.entropy import Entropy
from fedpeft.errors import BudgetExhausted, ConfigInvalid, PolicyRefused, Problem
from fedpeft.ids import RoundId, SizeClass
from fedpeft.privacy import (
    ExampleStatement,
    PrivacyLedger,
    SampledRelease,
    calibrate_by_both,
    calibrate_sampled,
    exceeds,
    opinions,
)
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.size_class import lower_end, upper_end

__all__ = ["ExamplePrivacy", "OpenLedger", "noise_of", "round_cost"]

OpenLedger = Callable[[], PrivacyLedger]
"""Opens the device's ledger for one use: several processes may play one device, one after the other."""


def round_cost(plan: LearningPlan, *, declared: SizeClass, parameters: int) -> SampledRelease | None:
    """What one round of training costs each of a device's examples (people); None without privacy of either.

    Args:
        plan: the run's.
        declared: the device's size class.
        parameters: coordinates that it trains.

    Raises:
        ConfigInvalid: delta is above 1 / examples (1 / people) for some number of this class, or no noise keeps the run
            within the budget.
    """
    if plan.privacy is None:
        return None
    z, rate = noise_of(plan.privacy, plan.train.batch_size, declared, parameters)
    return SampledRelease(
        noise_multiplier=z,
        sampling_rate=rate,
        steps=plan.train.local_steps,
        parameters=parameters,
        unit=plan.privacy.unit,
    )


@lru_cache(maxsize=256)
def noise_of(terms: ExampleTerms, batch_size: int, declared: SizeClass, parameters: int) -> tuple[float, float]:
    """A noise multiplier and a sampling rate; see ``round_cost``."""
    examples, many = math.ceil(upper_end(declared)) - 1, "people" if terms.unit == "person" else "examples"
    if terms.delta * examples > 1:
        problem = Problem(
            where="privacy.delta",
            expected=f"at most 1 / {examples} {many} ({examples**-1.1:.2g} is usual): a larger one would allow "
            "publishing one of them in full",
            found=f"{terms.delta:g}",
        )
        raise ConfigInvalid(f"The delta is too large for this device's {many}.", problems=[problem])
    rate = min(1.0, batch_size / lower_end(declared))  # on average at least a batch, and less than two

    def whole(z: float) -> SampledRelease:
        return SampledRelease(noise_multiplier=z, sampling_rate=rate, steps=terms.steps, parameters=parameters)

    try:
        needed = calibrate_by_both(
            lambda target: calibrate_sampled(target, terms.delta, whole),
            lambda z: (whole(z),),
            terms.epsilon,
            terms.delta,
        )
    except ValueError as error:
        problem = Problem(where="privacy.epsilon", expected="a budget that some noise reaches", found=str(error))
        raise ConfigInvalid("The privacy budget cannot be reached on this device.", problems=[problem]) from error
    if terms.noise_multiplier is None:
        return needed, rate
    if exceeds([whole(terms.noise_multiplier)], terms.epsilon, terms.delta):
        problem = Problem(
            where="privacy.noise_multiplier",
            expected=f"at least {needed:g} for {terms.steps} steps on {examples} {many}",
            found=f"{terms.noise_multiplier:g}",
            remedy="Leave it out, and each device finds its own.",
        )
        raise ConfigInvalid("The steps do not fit into the privacy budget.", problems=[problem])
    return terms.noise_multiplier, rate


class ExamplePrivacy:
    """Holds one device's promise.

    Args:
        ledger: opens the device's ledger, over its whole life; its budget is the site's. None: the device has none,
            and takes no part in such a run.
    """

    def __init__(self, ledger: OpenLedger | None) -> None:
        self._open = ledger

    def afford(self, plan: LearningPlan, cost: SampledRelease) -> None:
        """Returns if another round of this cost is within the run's budget and the site's.

        Raises:
            BudgetExhausted: the run's budget is spent on this device.
            PolicyRefused: the site's is, or this device keeps no ledger.
        """
        terms = _terms(plan)
        with self._ledger() as ledger:
            after = (*ledger.charged_by(_of(plan)), cost)
            spent = opinions(after, terms.delta).charged  # what ``statement`` will say: asked before it costs anything
            if spent > terms.epsilon:
                raise BudgetExhausted(
                    f"Expected another round within epsilon={terms.epsilon:g} at delta={terms.delta:g} of this run, "
                    f"found {spent:.4g} after it; lost rounds count."
                )
            if ledger.would_exceed(cost):
                limit = ledger.budget
                raise PolicyRefused(
                    f"Expected a round within epsilon={limit.epsilon:g} at delta={limit.delta:g}, this site's own over "
                    f"all runs; spent are {ledger.spent():.4g}."
                )

    def charge(self, plan: LearningPlan, round_id: RoundId, cost: SampledRelease, entropy: Entropy) -> None:
        """Pays for what was just trained, before any of it leaves; every training is charged, also a repeated one."""
        with self._ledger() as ledger:
            ledger.charge(f"{_prefix(plan)}{round_id} {entropy(8).hex()}", cost)

    def statement(self, plan: LearningPlan, cost: SampledRelease) -> ExampleStatement:
        """What this device's examples have lost in this run so far."""
        terms = _terms(plan)
        with self._ledger() as ledger:
            charged = ledger.charged_by(_of(plan))
        found = opinions(charged, terms.delta)
        return ExampleStatement(
            epsilon=found.charged,
            delta=terms.delta,
            noise_multiplier=cost.noise_multiplier,
            sampling_rate=cost.sampling_rate,
            l2_clip_norm=terms.l2_clip_norm,
            steps=sum(release.steps for release in charged if isinstance(release, SampledRelease)),
            examples_per_person=terms.examples_per_person if terms.unit == "person" else 0,
            ours=found.ours,
            prv=found.prv,
        )

    def _ledger(self) -> PrivacyLedger:
        if self._open is None:
            raise PolicyRefused(
                "Expected a privacy ledger on this device, found none; runs by examples or people need one."
            )
        return self._open()


def _terms(plan: LearningPlan) -> ExampleTerms:
    if plan.privacy is None:
        raise TypeError("a plan with example-level privacy")
    return plan.privacy


def _prefix(plan: LearningPlan) -> str:
    return f"{plan.run_id} round "


def _of(plan: LearningPlan) -> Callable[[str], bool]:
    prefix = _prefix(plan)
    return lambda label: label.startswith(prefix)
