"""What a site demands of a secure sum before its device takes part.

All of it is demanded of the signed terms, before anything leaves. A rule that a device held to alone, when it is asked
to reveal, would protect nothing of its own: the others hold the shares that open its input, and they hold to the terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedpeft.cohorts import of_members
from fedpeft.secagg.spec import MIN_COHORT_FLOOR, Mode, Participant, RoundSpec, block_encoding

__all__ = ["DevicePolicy", "Directory", "Enrolled", "colluders_objection", "policy_objection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """Who a device is by its enrolment: the roster must say the same, and its advert signs it."""

    device: str
    organisation: str


class Directory(Protocol):
    """What a site itself knows of the other devices; without one the coordinator's enrolment is trusted for that."""

    def admit(self, roster: Sequence[Participant]) -> int | str:
        """Judges the roster of signed terms, and remembers it, durably, if it may be used.

        Returns:
            How many of its devices the site has not confirmed: the terms must hold against so many colluders. Or an
            objection, in words.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePolicy:
    """A site's floor under the coordinator's terms.

    Args:
        coordinator_key: the coordinator's Ed25519 public key from enrolment, 32 bytes.
        allow_fast: whether the consistency round may be dropped; then only an honest-but-curious coordinator is safe.
        min_cohort: terms under which a block of fewer distinct organisations is opened are refused.
        min_corrupt_fraction: the terms must assume at least this share of colluding devices.
        min_levels: fewer quantization levels either side of zero are refused.
        min_max_abs: a narrower clipping range is refused.
        min_noise_multiplier: less noise on an opened sum, relative to the clip norm, is refused; 0: none is demanded.
        min_colluders: terms whose noise, thresholds and cohorts hold against fewer devices that work with the
            coordinator are refused; so is a round once too few members are left for it.
    """

    coordinator_key: bytes
    allow_fast: bool = False
    min_cohort: int = MIN_COHORT_FLOOR
    min_corrupt_fraction: float = 0.0
    min_levels: int = 15
    min_max_abs: float = 1e-9
    min_noise_multiplier: float = 0.0
    min_colluders: int = 0


def policy_objection(policy: DevicePolicy, spec: RoundSpec) -> str | None:
    """The first thing in these terms that the site does not allow, in words; None if there is none."""
    if spec.mode is Mode.FAST and not policy.allow_fast:
        return "Expected mode=full, found fast; set allow_fast in the site's policy to permit it."
    if spec.corrupt_fraction < policy.min_corrupt_fraction:
        return f"Expected corrupt_fraction >= {policy.min_corrupt_fraction}, found {spec.corrupt_fraction}."
    if spec.min_cohort < policy.min_cohort:
        return f"Expected secagg.min_cohort >= {policy.min_cohort} in the run, found {spec.min_cohort}."
    if policy.min_noise_multiplier > (spec.noise.noise_multiplier if spec.noise else 0.0):
        found = spec.noise.noise_multiplier if spec.noise else "no noise"
        return f"Expected a noise multiplier >= {policy.min_noise_multiplier}, found {found}."
    if spec.noise is not None and spec.noise.colluders < policy.min_colluders:
        return f"Expected noise against {policy.min_colluders} colluders or more, found {spec.noise.colluders}."
    objection = colluders_objection(spec, len(spec.participants), policy.min_colluders)
    if objection is not None:
        return objection
    for block in spec.blocks:
        levels = block_encoding(spec, block).params.levels
        if levels < policy.min_levels:
            return f"Expected at least {policy.min_levels} levels in block {block.block_id}, found {levels}."
        narrow = min(part.max_abs for part in block.ranges)
        if narrow < policy.min_max_abs:
            return f"Expected max_abs >= {policy.min_max_abs} in block {block.block_id}, found {narrow}."
    return None


def colluders_objection(spec: RoundSpec, members: int, least: int) -> str | None:
    """Why a round of so many members does not hold against ``least`` colluders, in words; None if it does."""
    assumed = of_members(spec.corrupt_fraction, members)
    found = assumed if spec.noise is None else min(assumed, spec.noise.colluders)
    if found >= least:
        return None
    return (
        f"Expected terms that hold against {least} colluding devices, found {found} of {members}; raise "
        "secagg.corrupt_fraction of the run (and privacy.colluders), leave out its rounds.over_select, which releases "
        "devices before they count, or confirm the devices that this site knows."
    )
