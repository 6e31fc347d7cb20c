"""What one secure sum is about: who, which blocks, how wide, how many may fail (docs/protocol.md, "Terms").

The coordinator proposes a ``RoundSpec``; a device recomputes everything that follows from it (graph,
threshold, ring bounds) and refuses what its own policy does not allow. Nothing here is secret. Invariants,
checked by ``check_spec`` on both sides: participant ids are 1..n in order, no device, identity or block twice,
every block's ring holds the sum of all n inputs, at least ``MIN_COHORT_FLOOR`` organisations a block.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.privacy import Mechanism, NoiseTerms, decode_sum
from fedpeft.ring import BlockEncoding, RingParams, SumRange
from fedpeft.secagg.primitives import DIGEST_SIZE

__all__ = [
    "MAX_WEIGHT_CLASS",
    "MIN_COHORT_FLOOR",
    "Mode",
    "Participant",
    "RoundSpec",
    "SummedBlock",
    "block_encoding",
    "check_spec",
    "decode_block",
    "mechanism",
]

MIN_COHORT_FLOOR = 3
"""With two organisations, each learns the other's input by subtracting its own."""

MAX_WEIGHT_CLASS = 63
"""A device's public size is a power of two; no device has more than 2^63 examples."""

MAX_PARTICIPANTS = 1 << 20
"""Bounds the memory that a specification can ask a device for."""

MAX_STAGE_DEADLINE_S = 2_592_000.0
"""30 days: a configuration cannot ask for more."""


NOT_BOUND = bytes(DIGEST_SIZE)
"""Terms of a sum that no work belongs to: tests and benchmarks of the sum alone."""


class Mode(Enum):
    """``FULL`` holds against a malicious coordinator; ``FAST`` drops the consistency round."""

    FULL = "full"
    FAST = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One device on the roster, as enrolment knows it.

    Args:
        participant_id: 1..n, its place on the roster and its Shamir abscissa.
        device: the device's enrolled name, unique on the roster.
        organisation: who is responsible for it; cohorts are counted in these.
        identity: its Ed25519 public key, 32 bytes, unique on the roster.
    """

    participant_id: ParticipantId
    device: str
    organisation: str
    identity: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SummedBlock:
    """One block of the sum, with its own owners, masks and cohort.

    Args:
        block_id: unique in the round.
        ranges: consecutive parts of the vector, usually one per tensor, each with its own clipping range.
        bits: ring bits per coordinate, 8..64; 8, 16 and 32 travel unpadded, other widths as lanes of 64-bit words.
    """

    block_id: BlockId
    ranges: tuple[SumRange, ...]
    bits: int = 32

    @property
    def length(self) -> int:
        """Coordinates of the block's vector, P."""
        return sum(part.length for part in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSpec:
    """The terms of one attempt at one secure sum; they are signed as ``RoundTerms`` (``offer.py``).

    Args:
        run_id: the run; with ``round_id`` and ``attempt`` it names this attempt, once and for all.
        round_id: the round.
        attempt: 1, 2, ...; a device never goes back, and never starts anew after it has agreed to a survivor set.
        mode: see ``Mode``.
        participants: the roster, ids 1..n in order.
        blocks: what is summed; their order is the order of everything on the wire.
        min_cohort: distinct organisations that must survive in a block before anything of it is revealed.
        corrupt_fraction: share of devices assumed to collude with the coordinator; sets the graph, with the next.
        dropout_fraction: share of devices that may vanish after they shared keys.
        stage_deadline_s: how long the coordinator waits in each stage, in seconds.
        noise: client-level differential privacy: what every owner of a block clips to and adds; None: nothing.
        work: digest of what every device is to compute for this sum; 32 bytes, opaque here (docs/protocol.md, "Work").
        history: digest of every earlier round of the run; 32 bytes, opaque here (docs/protocol.md, "History").
    """

    run_id: str
    round_id: int
    attempt: int
    mode: Mode
    participants: tuple[Participant, ...]
    blocks: tuple[SummedBlock, ...]
    min_cohort: int
    corrupt_fraction: float
    dropout_fraction: float
    stage_deadline_s: float
    noise: NoiseTerms | None = None
    work: bytes = NOT_BOUND
    history: bytes = NOT_BOUND


def block_encoding(spec: RoundSpec, block: SummedBlock) -> BlockEncoding:
    """The ring encoding of a block: bounds hold for a sum over the whole roster."""
    return BlockEncoding(params=RingParams(bits=block.bits, addends=len(spec.participants)), ranges=block.ranges)


def mechanism(spec: RoundSpec) -> Mechanism | None:
    """The noise of these terms with the numbers that it rests on; None if they have none."""
    if spec.noise is None:
        return None
    return Mechanism(
        terms=spec.noise,
        devices=len(spec.participants),
        threshold=spec.min_cohort,
        bits=spec.blocks[0].bits if spec.blocks else 0,
        parameters=sum(block.length for block in spec.blocks),
    )


def decode_block(
    spec: RoundSpec, block: SummedBlock, words: npt.NDArray[np.unsignedinteger], addends: int
) -> npt.NDArray[np.float64]:
    """What unmasked words mean: the sum of ``addends`` vectors, (P,) float64."""
    if spec.noise is not None:
        return decode_sum(words, spec.noise.step)
    return block_encoding(spec, block).decode(words, addends)


def check_spec(spec: RoundSpec) -> None:
    """Refuses terms that no honest coordinator proposes; policy is checked apart, by the device.

    Raises:
        ConfigInvalid: with every problem found.
    """
    problems = [*_roster_problems(spec), *_number_problems(spec), *_block_problems(spec), *_noise_problems(spec)]
    if problems:
        raise ConfigInvalid("The terms of this secure sum cannot be used.", problems=problems)


def _roster_problems(spec: RoundSpec) -> list[Problem]:
    people, found = spec.participants, []
    if not MIN_COHORT_FLOOR <= len(people) <= MAX_PARTICIPANTS:
        found.append(
            Problem(
                where="participants",
                expected=f"{MIN_COHORT_FLOOR}..{MAX_PARTICIPANTS} devices",
                found=str(len(people)),
                remedy="A sum of two is no secret.",
            )
        )
    if [p.participant_id for p in people] != list(range(1, len(people) + 1)):
        found.append(Problem(where="participants", expected="ids 1..n in order", found="other ids"))
    for what in ("device", "identity"):
        if len({getattr(p, what) for p in people}) != len(people):
            found.append(Problem(where="participants", expected=f"every {what} once", found=f"a {what} twice"))
    if any(len(p.identity) != 32 for p in people):
        found.append(Problem(where="participants", expected="32-byte identities", found="another length"))
    return found


def _number_problems(spec: RoundSpec) -> list[Problem]:
    found = []
    if spec.attempt < 1:
        found.append(Problem(where="attempt", expected="1 or more", found=str(spec.attempt)))
    if spec.min_cohort < MIN_COHORT_FLOOR:
        found.append(Problem(where="min_cohort", expected=f"{MIN_COHORT_FLOOR} or more", found=str(spec.min_cohort)))
    for name, fraction in (("corrupt_fraction", spec.corrupt_fraction), ("dropout_fraction", spec.dropout_fraction)):
        if not 0 <= fraction < 0.5:
            found.append(Problem(where=name, expected="0 <= fraction < 0.5", found=str(fraction)))
    if not 0 < spec.stage_deadline_s <= MAX_STAGE_DEADLINE_S:
        expected = f"a time > 0, at most {MAX_STAGE_DEADLINE_S:.0f} seconds"
        found.append(Problem(where="stage_deadline_s", expected=expected, found=str(spec.stage_deadline_s)))
    for name, bound in (("work", spec.work), ("history", spec.history)):
        if len(bound) != DIGEST_SIZE:
            found.append(Problem(where=name, expected=f"a digest of {DIGEST_SIZE} bytes", found=f"{len(bound)} bytes"))
    return found


def _block_problems(spec: RoundSpec) -> list[Problem]:
    found = []
    if not spec.blocks:
        found.append(Problem(where="blocks", expected="at least one block", found="none"))
    if len({block.block_id for block in spec.blocks}) != len(spec.blocks):
        found.append(Problem(where="blocks", expected="every block once", found="a block twice"))
    for block in spec.blocks:
        try:
            block_encoding(spec, block)
        except ConfigInvalid as refused:
            found.extend(refused.problems)
    return found


def _noise_problems(spec: RoundSpec) -> list[Problem]:
    noise = mechanism(spec)
    if noise is None:
        return []
    found = noise.problems()
    if any(block.bits != noise.bits for block in spec.blocks):
        found.append(Problem(where="blocks", expected="one ring width for all blocks with noise", found="several"))
    if any(part.exact for block in spec.blocks for part in block.ranges):
        found.append(Problem(where="blocks", expected="no exact counts beside noise: they are releases", found="some"))
    return found
