"""Client-level privacy of one run, on the coordinator: the noise of a round, the ledger, the statement.

Everything is refused before the first round that would fail in a later one: a budget that the rounds do not fit into,
a ring too narrow for the noise. A charge is made before the devices are asked to open the sum, and stays made if the
round then fails: the coordinator may have seen it. So a run that loses rounds late may end before its last one, with
exit code 7, and is never resumed past its budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec
from fedpeft.config.model import Privacy, RunConfig, SecureAggregation
from fedpeft.errors import BudgetExhausted, ConfigInvalid, IntegrityFailed, Problem
from fedpeft.privacy import (
    CLIP_BIT,
    Budget,
    Mechanism,
    NoiseTerms,
    PrivacyLedger,
    Release,
    Statement,
    bit_noise,
    bit_weight,
    calibrate,
    epsilon,
    next_clip_norm,
)
from fedpeft.privacy.mechanism import MIN_SHARE_SIGMA, size_mechanism

__all__ = ["LEDGER", "ClientPrivacy", "Plan", "plan_of", "read_budget", "trainable_parameters"]

LEDGER = Path("privacy") / "ledger.jsonl"
"""Within the run directory."""

CLIP_NORM = "l2_clip_norm"
"""Under this name a commit keeps the clip norm of the next round, when it is adaptive."""

MOST_BIT_NOISE = 0.5
"""Standard deviation of the noise on the share of bits; with more an adaptive clip norm would follow noise alone."""

PLANNED_DEVICES = 10_000
"""For the sampler's float error, which grows with the devices: 10^-5 of epsilon for so many and 10^6 parameters."""


def read_budget(privacy: Privacy) -> Budget:
    """The run's budget; the configuration has been checked.

    Raises:
        ConfigInvalid: it has none.
    """
    if privacy.unit != "client" or privacy.epsilon is None or privacy.delta is None:
        raise ConfigInvalid(
            'Expected privacy.unit = "client" with an epsilon and a delta, found none; nothing is promised.'
        )
    return Budget(epsilon=privacy.epsilon, delta=privacy.delta)


def trainable_parameters(spec: AdapterSpec) -> int:
    """Coordinates that a round releases."""
    return sum(block.size for block in spec.blocks if block.trainable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run promises, decided before its first round.

    Args:
        privacy, secagg: the run's sections.
        rounds: releases that the budget is for.
        parameters: coordinates of a release: the trainable ones of the union adapter, and the bit of an adaptive clip.
        noise_multiplier: z: as configured, or the least that keeps every round within the budget.
    """

    privacy: Privacy
    secagg: SecureAggregation
    rounds: int
    parameters: int
    noise_multiplier: float

    @classmethod
    def of(cls, privacy: Privacy, secagg: SecureAggregation, *, rounds: int, parameters: int) -> Self:
        """The plan of a run.

        Raises:
            ConfigInvalid: no noise keeps the rounds within the budget, or the configured one does not.
        """
        budget, z = read_budget(privacy), privacy.noise_multiplier

        def worst(guess: float) -> Release:
            return _worst(secagg.min_cohort - privacy.colluders, parameters, guess)

        if z is None:
            try:
                z = calibrate(budget, rounds, worst)
            except ValueError as error:
                where = "run.toml: privacy.epsilon"
                problem = Problem(where=where, expected="a budget that some noise reaches", found=str(error))
                raise ConfigInvalid("The privacy budget cannot be reached.", problems=[problem]) from error
        spent = epsilon([(worst(z), rounds)], budget.delta)
        if spent > budget.epsilon:
            fitting, needed = _last_fitting(worst(z), budget, rounds), calibrate(budget, rounds, worst)
            problem = Problem(
                where="run.toml: privacy.noise_multiplier",
                expected=f"at least {needed:g}, or at most {fitting} rounds, for epsilon={budget.epsilon:g}",
                found=f"{z:g} and {rounds} rounds, which spend {spent:.4g}",
            )
            raise ConfigInvalid("The rounds do not fit into the privacy budget.", problems=[problem])
        return cls(privacy=privacy, secagg=secagg, rounds=rounds, parameters=parameters, noise_multiplier=z)

    def mechanism(self, devices: int, l2_clip_norm: float | None = None) -> Mechanism:
        """The mechanism of a round with so many invited devices.

        Args:
            devices: n.
            l2_clip_norm: of this round; none: of the first.

        Raises:
            ConfigInvalid: the ring is too narrow for it; in the first round also too few devices for an adaptive clip.
        """
        norm, z = l2_clip_norm or self.privacy.l2_clip_norm, self.noise_multiplier
        weight = bit_weight(norm, z, devices) if self.privacy.clip == "adaptive" else 0.0
        noise = bit_noise(weight, z, norm, devices) if weight else 0.0
        if noise > MOST_BIT_NOISE and l2_clip_norm is None:
            problem = Problem(
                where="run.toml: privacy.clip",
                expected=f"at least {devices * noise / MOST_BIT_NOISE:.0f} devices a round for an adaptive clip at "
                f"noise multiplier {z:g}",
                found=f"{devices}, whose bits would drown: noise of {noise:.2f} on a share in [0, 1]",
                remedy='Set privacy.clip = "fixed", or allow a larger epsilon.',
            )
            raise ConfigInvalid("The clip norm cannot follow the devices' norms.", problems=[problem])
        return size_mechanism(
            bit_weight=weight,
            l2_clip_norm=norm,
            noise_multiplier=z,
            colluders=self.privacy.colluders,
            devices=devices,
            threshold=self.secagg.min_cohort,
            bits=self.secagg.bits,
            parameters=self.parameters,
        )

    def statement(self, *, spent: float | None = None, rounds: int | None = None) -> Statement:
        """The promise: of the whole run, or of what was spent in so many releases."""
        delta, shares = read_budget(self.privacy).delta, self.secagg.min_cohort - self.privacy.colluders
        planned = epsilon([(_worst(shares, self.parameters, self.noise_multiplier), self.rounds)], delta)
        return Statement(
            epsilon=planned if spent is None else spent,
            delta=delta,
            noise_multiplier=self.noise_multiplier,
            l2_clip_norm=self.privacy.l2_clip_norm,
            rounds=self.rounds if rounds is None else rounds,
            threshold=self.secagg.min_cohort,
            colluders=self.privacy.colluders,
            consistent=self.secagg.mode == "full",
            clip_quantile=self.privacy.clip_quantile if self.privacy.clip == "adaptive" else None,
        )


class ClientPrivacy:
    """One run's noise and ledger. Close it, or use it in a ``with``.

    Args:
        plan: from ``Plan.of``.
        ledger: the run's, held.
    """

    def __init__(self, plan: Plan, ledger: PrivacyLedger) -> None:
        self.plan, self._ledger = plan, ledger
        self._clip_norm: float | None = None

    @classmethod
    def open(cls, config: RunConfig, *, parameters: int, run: Path, witness: Path) -> Self:
        """Plans the run and opens its ledger.

        Args:
            config: the run.
            parameters: trainable coordinates of the union adapter.
            run: the run directory.
            witness: where the ledger's witness lies; outside the run directory.

        Raises:
            ConfigInvalid: the plan is impossible.
            IntegrityFailed: the ledger is not the newest.
        """
        plan = plan_of(config, parameters)
        return cls(plan, PrivacyLedger(run / LEDGER, witness=witness, budget=read_budget(config.privacy)))

    def terms(self, devices: int) -> NoiseTerms:
        """The noise of a round with so many invited devices.

        Raises:
            BudgetExhausted: the budget does not allow its release; nobody has been asked to train yet.
        """
        mechanism = self.plan.mechanism(devices, self._clip_norm)
        if self._ledger.would_exceed(mechanism.release):
            budget = self._ledger.budget
            raise BudgetExhausted(
                f"Expected epsilon={budget.epsilon:g} at delta={budget.delta:g} to allow another round, found "
                f"{self._ledger.spent():.4g} spent in {len(self._ledger.entries)} releases; the rounds committed so "
                "far stand. Lost rounds count: their sums may have been seen."
            )
        return mechanism.terms

    def charge(self, label: str, devices: int) -> float:
        """Pays for one release and returns what is spent in all; call it before the sum is opened."""
        self._ledger.charge(label, self.plan.mechanism(devices, self._clip_norm).release)
        return self._ledger.spent()

    def restore(self, committed: Mapping[str, object]) -> None:
        """Goes on with the clip norm of the last commit, as ``after`` gave it."""
        norm = committed.get(CLIP_NORM)
        if self.plan.privacy.clip == "fixed":
            return
        if not isinstance(norm, float) or not norm > 0:
            raise IntegrityFailed(f"Expected a clip norm > 0 in the last commit, found {norm!r}.")
        self._clip_norm = norm

    def after(self, terms: NoiseTerms | None, summed: secagg.Summed) -> dict[str, float]:
        """Moves an adaptive clip norm by what the round's bits say; returns what its commit must hold."""
        privacy = self.plan.privacy
        if privacy.clip == "fixed" or terms is None:
            return {}
        self._clip_norm = next_clip_norm(
            terms.l2_clip_norm,
            {CLIP_BIT: float(summed.sums[CLIP_BIT].values[0])} if CLIP_BIT in summed.sums else {},
            weight=terms.bit_weight,
            survivors=len(summed.survivors),
            quantile=privacy.clip_quantile,
            rate=privacy.clip_learning_rate,
        )
        return {CLIP_NORM: self._clip_norm}

    def statement(self) -> Statement:
        """What has been spent so far."""
        return self.plan.statement(spent=self._ledger.spent(), rounds=len(self._ledger.entries))

    def close(self) -> None:
        """Lets go of the ledger; may be called again."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def plan_of(config: RunConfig, parameters: int) -> Plan:
    """The plan of a run of so many trained coordinates: see ``Plan.of``."""
    released = parameters + (config.privacy.clip == "adaptive")
    return Plan.of(config.privacy, config.secagg, rounds=config.rounds.count, parameters=released)


def _worst(shares: int, parameters: int, z: float) -> Release:
    """At least as bad as every round: the coarsest grid and the most devices."""
    return Release(
        noise_multiplier=z,
        shares=shares,
        share_sigma=MIN_SHARE_SIGMA,
        parameters=parameters,
        devices=PLANNED_DEVICES,
    )


def _last_fitting(release: Release, budget: Budget, count: int) -> int:
    """The most rounds, below ``count``, that fit into the budget."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon([(release, middle)], budget.delta) <= budget.epsilon else (low, middle)
    return low
