"""The noise of a round under client-level privacy, from the plan: one function for both sides, and the device's check.

A coordinator that could choose the noise could choose none: so the multiplier is in the plan, which a device keeps for
the whole run, and the rest follows. Only an adaptive clip norm is not foretold; it moves by a bounded factor a round.
"""

import math

from fedpeft.config.model import Privacy, SecureAggregation
from fedpeft.errors import SpecMismatch
from fedpeft.privacy import Mechanism, NoiseTerms, bit_weight, metric_weight, size_mechanism
from fedpeft.round.plan import LearningPlan

__all__ = ["expect_clip", "expect_noise", "planned_mechanism"]

CLIP_MARGIN = 1e-9
"""Relative; what exponentials may differ by between two machines."""


def planned_mechanism(
    privacy: Privacy, secagg: SecureAggregation, *, devices: int, l2_clip_norm: float, z: float, parameters: int
) -> Mechanism:
    """The noise of a round on so many invited devices.

    Args:
        privacy, secagg: the run's sections.
        l2_clip_norm: of this round.
        z: the noise multiplier.
        parameters: coordinates that a round releases.

    Raises:
        ConfigInvalid: no grid gives this noise in this ring.
    """
    return size_mechanism(
        bit_weight=bit_weight(l2_clip_norm, z, devices) if privacy.clip == "adaptive" else 0.0,
        metric_weight=metric_weight(l2_clip_norm) if privacy.metrics == "noised" else 0.0,
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=z,
        colluders=privacy.colluders,
        devices=devices,
        threshold=secagg.min_cohort,
        bits=secagg.noise_bits,
        parameters=parameters,
    )


def expect_noise(
    plan: LearningPlan,
    noise: NoiseTerms | None,
    *,
    round_id: int,
    devices: int,
    parameters: int,
    seen: tuple[int, float] | None,
) -> None:
    """Returns if the terms have the noise that the plan asks for: all of it, or none.

    Args:
        noise: of the terms.
        devices: on the roster.
        parameters: coordinates of the sum.
        seen: an earlier round, or this one, and its clip norm; None: this device knows of none.

    Raises:
        SpecMismatch: names what differs.
        ConfigInvalid: no grid gives the planned noise in this ring.
    """
    privacy = plan.client_privacy
    if privacy is None or noise is None:
        if (privacy is None) != (noise is None):
            raise SpecMismatch(
                f"Expected {'no noise' if privacy is None else 'noise'} in the terms, as the plan says; found other."
            )
        return
    if privacy.noise_multiplier is None:
        raise SpecMismatch("Expected a plan with the noise multiplier of its run, found none.")
    norm = noise.l2_clip_norm
    _expect_near(privacy, norm, round_id=round_id, seen=seen)
    made = planned_mechanism(
        privacy, plan.secagg, devices=devices, l2_clip_norm=norm, z=privacy.noise_multiplier, parameters=parameters
    )
    if made.terms != noise:
        raise SpecMismatch(f"Expected the noise {made.terms}, which follows from the plan; found {noise}.")


def expect_clip(plan: LearningPlan, norm: float, *, round_id: int, signed: float | None) -> None:
    """Returns if a link has a clip norm that its round can have had: it scales the step that devices decode.

    Args:
        norm: of the link of a round with a sum; 0: it had no noise.
        round_id: of that round.
        signed: the clip norm of the terms under which this device took part in it; None: it did not.

    Raises:
        SpecMismatch: with both numbers.
    """
    privacy = plan.client_privacy
    expected = signed if privacy is not None else 0.0
    if expected is not None and norm != expected:
        raise SpecMismatch(f"Expected a clip norm of {expected:g} in the link of round {round_id}, found {norm:g}.")
    if privacy is not None:
        _expect_near(privacy, norm, round_id=round_id, seen=None)


def _expect_near(privacy: Privacy, norm: float, *, round_id: int, seen: tuple[int, float] | None) -> None:
    """The plan's clip norm, or, where it is adaptive, one that rounds since ``seen`` can have led to."""
    then, centre = seen or (1, privacy.l2_clip_norm)
    rate = privacy.clip_learning_rate if privacy.clip == "adaptive" else 0.0
    reach = math.exp(rate * max(0, round_id - then)) * (1 + CLIP_MARGIN)
    low, high = centre / reach, centre * reach
    if not low <= norm <= high:
        raise SpecMismatch(f"Expected a clip norm of {low:g} to {high:g} in round {round_id}, found {norm:g}.")
