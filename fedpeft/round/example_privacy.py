"""DP-SGD's promise on the device, by examples or people: noise, ledger, refusals, and what it states about itself.

The coordinator proposes a budget; the device alone knows how many examples (people) it has, so it finds its own noise
multiplier, charges its own ledger before its update leaves, and refuses a round past the run's budget or its site's.
A device's size class counts as public (``fedpeft.round.size_class``): its weight, its sampling rate, its noise and what
it refuses follow from that alone, so its statements tell no more.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from fedpeft.adapter import AdapterSpec
from fedpeft.entropy import Entropy
from fedpeft.errors import BudgetExhausted, ConfigInvalid, PolicyRefused, Problem
from fedpeft.ids import RoundId, SizeClass
from fedpeft.privacy import (
    BANDS,
    ExampleStatement,
    NoiseStream,
    PrivacyLedger,
    SampledRelease,
    calibrate_by_both,
    calibrate_sampled,
    coefficients,
    column_norm,
    exceeds,
    opinions,
    root_mean_square,
    turns,
)
from fedpeft.round.device.last_runs import LastRuns
from fedpeft.round.local import DeviceStore, Trainer
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.size_class import lower_end, upper_end

__all__ = ["DeviceNoise", "ExamplePrivacy", "OpenLedger", "noise_in_model", "noise_of", "round_cost"]

STREAMS = LastRuns(at_hand="noise", aside="noise", index="noise-of-other-runs", nothing=NoiseStream.nothing())
"""Where a device keeps its correlated noise, of its last runs; of a run that has taken all its steps no rows."""

ROWS_BYTES = 256 * 2**20
"""Of noise that a device keeps: larger adapters have it reach less far."""

OpenLedger = Callable[[], PrivacyLedger]
"""Opens the device's ledger for one use: several processes may play one device, one after the other."""


class DeviceNoise(NamedTuple):
    """A device's noise in a run, as its size class and the plan say.

    Args:
        noise_multiplier: z; of correlated noise that of a step's fresh part, over the matrix's column norm.
        sampling_rate: with which a step takes each unit; of correlated noise, each one of the group whose turn it is.
        bands: b: 1 is independent noise, else how many steps a group waits from one of its turns to the next.
    """

    noise_multiplier: float
    sampling_rate: float
    bands: int


def round_cost(plan: LearningPlan, *, declared: SizeClass, parameters: int, taken: int = 0) -> SampledRelease | None:
    """What one round of training costs each of a device's examples (people); None without privacy of either.

    Args:
        plan: the run's.
        declared: the device's size class.
        parameters: coordinates that it trains.
        taken: steps of correlated noise before this round.

    Raises:
        ConfigInvalid: delta is above 1 / examples (1 / people) for some number of this class, or no noise keeps the run
            within the budget.
    """
    if plan.privacy is None:
        return None
    found = noise_of(plan.privacy, plan.train.batch_size, declared, parameters)
    steps = turns(taken, taken + plan.train.local_steps, found.bands)
    return _release(plan.privacy, found, steps, parameters)


def _release(terms: ExampleTerms, noise: DeviceNoise, steps: int, parameters: int) -> SampledRelease:
    """What so many turns of one group are for the accountant; of independent noise every step is everybody's turn."""
    return SampledRelease(
        noise_multiplier=noise.noise_multiplier,
        sampling_rate=noise.sampling_rate,
        steps=steps,
        parameters=parameters * noise.bands,  # a turn moves the rows of as many steps
        unit=terms.unit,
    )


@lru_cache(maxsize=256)
def noise_of(terms: ExampleTerms, batch_size: int, declared: SizeClass, parameters: int) -> DeviceNoise:
    """A device's noise; see ``round_cost``."""
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
    try:
        bands = _bands_of(terms, rate, parameters) if terms.noise == "correlated" else 1
        needed = _least_noise(terms, rate, bands, parameters)
    except ValueError as error:
        problem = Problem(where="privacy.epsilon", expected="a budget that some noise reaches", found=str(error))
        raise ConfigInvalid("The privacy budget cannot be reached on this device.", problems=[problem]) from error
    if terms.noise_multiplier is None:
        return needed
    given = needed._replace(noise_multiplier=terms.noise_multiplier)
    if exceeds([_release(terms, given, terms.steps, parameters)], terms.epsilon, terms.delta):
        problem = Problem(
            where="privacy.noise_multiplier",
            expected=f"at least {needed.noise_multiplier:g} for {terms.steps} steps on {examples} {many}",
            found=f"{terms.noise_multiplier:g}",
            remedy="Leave it out, and each device finds its own.",
        )
        raise ConfigInvalid("The steps do not fit into the privacy budget.", problems=[problem])
    return given


def noise_in_model(noise: DeviceNoise, steps: int, momentum: float) -> float:
    """Root mean square over the steps of what noise leaves in the model, in units of C; for comparisons."""
    matrix = coefficients(noise.bands, momentum)
    return noise.noise_multiplier * column_norm(matrix) * root_mean_square(matrix, steps, momentum)


def _least_noise(terms: ExampleTerms, rate: float, bands: int, parameters: int) -> DeviceNoise:
    """With which all steps stay within the budget."""

    def with_noise(z: float) -> DeviceNoise:
        return DeviceNoise(noise_multiplier=z, sampling_rate=bands * rate, bands=bands)

    def whole(z: float) -> SampledRelease:
        return _release(terms, with_noise(z), turns(0, terms.steps, bands), parameters)

    return with_noise(
        calibrate_by_both(
            lambda target: calibrate_sampled(target, terms.delta, whole),
            lambda z: (whole(z),),
            terms.epsilon,
            terms.delta,
        )
    )


def _bands_of(terms: ExampleTerms, rate: float, parameters: int) -> int:
    """How far noise should reach, for the least of it in the model; a group of b takes part at b times the rate."""

    def error(bands: int) -> float:
        noise = DeviceNoise(noise_multiplier=1.0, sampling_rate=bands * rate, bands=bands)
        whole = _release(terms, noise, turns(0, terms.steps, bands), parameters)
        z = calibrate_sampled(terms.epsilon, terms.delta, lambda z: replace(whole, noise_multiplier=z))
        return noise_in_model(noise._replace(noise_multiplier=z), terms.steps, terms.momentum)

    def fits(bands: int) -> bool:
        return bands * rate <= 1 and bands <= terms.steps and 4 * parameters * (bands - 1) <= ROWS_BYTES

    return min(filter(fits, BANDS), key=error)


class ExamplePrivacy:
    """Holds one device's promise.

    Args:
        ledger: opens the device's ledger, over its whole life; its budget is the site's. None: the device has none,
            and takes no part in such a run.
        store: keeps where the device is in its correlated noise.
    """

    def __init__(self, ledger: OpenLedger | None, store: DeviceStore) -> None:
        self._open, self._store = ledger, store

    def afford(
        self, plan: LearningPlan, spec: AdapterSpec, trainer: Trainer, cost: SampledRelease, entropy: Entropy
    ) -> tuple[NoiseStream | None, SampledRelease]:
        """The device's correlated noise before the coming round (None: it is independent), and what the round costs.

        Args:
            plan, spec: of the run.
            trainer: of this device.
            cost: as the trainer says it: of a round without rounds before it.
            entropy: of the operating system.

        Raises:
            BudgetExhausted: the run's budget is spent on this device.
            PolicyRefused: the site's is, or this device keeps no ledger.
        """
        terms = _terms(plan)
        stream, cost = self._going_on(plan, spec, trainer, cost, entropy)
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
        return stream, cost

    def _going_on(
        self, plan: LearningPlan, spec: AdapterSpec, trainer: Trainer, cost: SampledRelease, entropy: Entropy
    ) -> tuple[NoiseStream | None, SampledRelease]:
        """Where the last round left the stream, and what a round costs from there.

        Another stream begins, at the price of its first turn, wherever the last one cannot go on: its rows are gone, or
        an older copy of them is there than of the ledger, other blocks are trained now, or the device's size class is
        another: a turn of the groups is charged as its first one begins, and a later one of them would be taken under
        noise that was not charged.
        """
        terms = _terms(plan)
        if terms.noise == "independent":
            return None, cost
        mine = trainer.trains(plan)
        blocks = {block.block_id: block.size for block in spec.blocks if block.block_id in mine}
        size, declared = sum(blocks.values()), trainer.size_class(plan)
        bands = noise_of(terms, plan.train.batch_size, declared, size).bands
        if bands == 1:
            return None, cost
        stream = STREAMS.of(self._store, plan.run_id)
        if (
            stream is None
            or (stream.bands, stream.momentum, stream.blocks) != (bands, terms.momentum, tuple(blocks))
            or not stream.whole(size)
            or not self._was_charged(plan, stream, cost)
        ):
            stream = NoiseStream.begin(plan.run_id, blocks, bands=bands, momentum=terms.momentum, entropy=entropy)
        return stream, round_cost(plan, declared=declared, parameters=size, taken=stream.taken) or cost

    def _was_charged(self, plan: LearningPlan, stream: NoiseStream, cost: SampledRelease) -> bool:
        """Whether the run's last charge led to this place of the stream, under the noise that the round would cost."""
        with self._ledger() as ledger:
            last = next((entry for entry in reversed(ledger.entries) if _of(plan)(entry.label)), None)
        if last is None or not isinstance(last.release, SampledRelease):
            return False
        return last.label.endswith(f" {stream.mark}") and replace(last.release, steps=cost.steps) == cost

    def charge(
        self,
        plan: LearningPlan,
        round_id: RoundId,
        cost: SampledRelease,
        entropy: Entropy,
        stream: NoiseStream | None = None,
    ) -> None:
        """Pays for what was just trained, before any of it leaves; every training is charged, also a repeated one.

        Args:
            plan, round_id, cost, entropy: of the round; the entropy makes its label unique.
            stream: of correlated noise after it. It is kept once the charge is, so that no step is taken again whose
                update may have left, and none goes on that was not charged.
        """
        label = f"{_prefix(plan)}{round_id} {entropy(8).hex()}"
        with self._ledger() as ledger:
            ledger.charge(label if stream is None else f"{label} {stream.mark}", cost)
        if stream is not None:
            STREAMS.keep(self._store, stream if stream.taken < _terms(plan).steps else replace(stream, rows=()))

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
