"""What a run under client-level privacy promises, decided before its first round: its noise, and what is refused.

Everything is refused before the first round that would fail in a later one: a budget that the rounds do not fit into,
a ring too narrow for the noise, bits or metrics that would drown in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from fedpeft.adapter import AdapterSpec
from fedpeft.config.model import Privacy, RunConfig, SecureAggregation
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.privacy import (
    METRIC_LANES,
    Budget,
    Charge,
    Mechanism,
    Release,
    Statement,
    bit_noise,
    bit_weight,
    calibrate,
    calibrate_by_both,
    epsilon,
    exceeds,
    metric_noise,
    metric_weight,
    opinions,
)
from fedpeft.privacy.discrete_gaussian import MAX_SIGMA
from fedpeft.privacy.mechanism import MIN_SHARE_SIGMA, TAIL
from fedpeft.round.noise import planned_mechanism

__all__ = ["MOST_BIT_NOISE", "NoisePlan", "plan_of", "read_budget", "trainable_parameters"]

MOST_BIT_NOISE = 0.5
"""Standard deviation of the noise on the share of bits; with more an adaptive clip norm would follow noise alone."""

MOST_METRIC_NOISE = 0.5
"""Standard deviation of the noise on a round's accuracy; with more, metrics would say next to nothing."""

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
class NoisePlan:
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
            return _worst(secagg.min_cohort - privacy.colluders, parameters, guess, secagg.noise_bits)

        if z is None:
            try:
                z = calibrate_by_both(
                    lambda target: calibrate(replace(budget, epsilon=target), rounds, worst),
                    lambda guess: (worst(guess),) * rounds,
                    budget.epsilon,
                    budget.delta,
                )
            except ValueError as error:
                where = "run.toml: privacy.epsilon"
                problem = Problem(where=where, expected="a budget that some noise reaches", found=str(error))
                raise ConfigInvalid("The privacy budget cannot be reached.", problems=[problem]) from error
        if exceeds((worst(z),) * rounds, budget.epsilon, budget.delta):
            spent = opinions((worst(z),) * rounds, budget.delta).charged
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
        lanes = metric_weight(norm) if self.privacy.metrics == "noised" else 0.0
        # The lanes add to the noise on the bit; they are no part of what it is measured against.
        noise = bit_noise(weight, z, math.hypot(norm, math.sqrt(METRIC_LANES) * lanes), devices) if weight else 0.0
        if noise > MOST_BIT_NOISE and l2_clip_norm is None:
            problem = Problem(
                where="run.toml: privacy.clip",
                expected=f"at least {devices * noise / MOST_BIT_NOISE:.0f} devices a round for an adaptive clip at "
                f"noise multiplier {z:g}",
                found=f"{devices}, whose bits the noise would hide: noise of {noise:.2f} on a share in [0, 1]",
                remedy='Set privacy.clip = "fixed", or allow a larger epsilon.',
            )
            raise ConfigInvalid("The clip norm cannot follow the devices' norms.", problems=[problem])
        made = planned_mechanism(
            self.privacy, self.secagg, devices=devices, l2_clip_norm=norm, z=z, parameters=self.parameters
        )
        blur = metric_noise(lanes, z * made.terms.sensitivity, devices) if lanes else 0.0
        if blur > MOST_METRIC_NOISE and l2_clip_norm is None:
            problem = Problem(
                where="run.toml: privacy.metrics",
                expected=f"at least {devices * blur / MOST_METRIC_NOISE:.0f} devices a round for noised metrics at "
                f"noise multiplier {z:g}",
                found=f"{devices}, whose accuracy the noise would hide: noise of {blur:.2f} on a number in [0, 1]",
                remedy='Set privacy.metrics = "suppressed", or allow a larger epsilon.',
            )
            raise ConfigInvalid("The noise would hide the metrics.", problems=[problem])
        return made

    def statement(self, made: Sequence[Charge] | None = None) -> Statement:
        """The promise: of the whole run, or of the releases made."""
        delta, shares = read_budget(self.privacy).delta, self.secagg.min_cohort - self.privacy.colluders
        worst = _worst(shares, self.parameters, self.noise_multiplier, self.secagg.noise_bits)
        releases = (worst,) * self.rounds if made is None else made
        return Statement(
            opinions=opinions(releases, delta),
            delta=delta,
            noise_multiplier=self.noise_multiplier,
            l2_clip_norm=self.privacy.l2_clip_norm,
            rounds=len(releases),
            threshold=self.secagg.min_cohort,
            colluders=self.privacy.colluders,
            consistent=self.secagg.mode == "full",
            clip_quantile=self.privacy.clip_quantile if self.privacy.clip == "adaptive" else None,
            noised_metrics=self.privacy.metrics == "noised",
        )


def plan_of(config: RunConfig, parameters: int) -> NoisePlan:
    """The plan of a run of so many trained coordinates: see ``NoisePlan.of``."""
    released = parameters + (config.privacy.clip == "adaptive") + METRIC_LANES * (config.privacy.metrics == "noised")
    return NoisePlan.of(config.privacy, config.secagg, rounds=config.rounds.count, parameters=released)


def _worst(shares: int, parameters: int, z: float, bits: int) -> Release:
    """At least as bad as every round: the coarsest grid and the most devices."""
    # size_mechanism's step, at most twice the finest: 2^(bits-1) steps hold n S and the tail of all the noise.
    widest = PLANNED_DEVICES + TAIL * z * math.sqrt(PLANNED_DEVICES / shares)
    coarsest = min(2.0 ** (bits - 2) * z / (widest * math.sqrt(shares)), MAX_SIGMA / 2) * (1 - 2.0**-10)
    return Release(
        noise_multiplier=z,
        shares=shares,
        share_sigma=max(MIN_SHARE_SIGMA, coarsest),
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
