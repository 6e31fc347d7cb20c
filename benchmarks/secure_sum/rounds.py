"""Rounds to measure: terms, the coordinator's key and the devices'."""

from collections.abc import Sequence

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    DevicePolicy,
    DeviceSession,
    Enrolled,
    IdentityKey,
    MemoryLedger,
    Mode,
    Participant,
    RoundSpec,
    SummedBlock,
)

__all__ = ["make_round", "sessions_of"]


def make_round(
    devices: int, parameters: int, bits: int, mode: Mode
) -> tuple[RoundSpec, IdentityKey, list[IdentityKey]]:
    """Terms: one block of the given size, and the small block of counts that every round has."""
    coordinator = IdentityKey.generate(os_entropy)
    keys = [IdentityKey.generate(os_entropy) for _ in range(devices)]
    spec = RoundSpec(
        run_id="benchmark",
        round_id=1,
        attempt=1,
        mode=mode,
        participants=tuple(
            Participant(participant_id=ParticipantId(i), device=f"d{i}", organisation=f"o{i}", identity=key.public)
            for i, key in enumerate(keys, 1)
        ),
        blocks=(
            SummedBlock(block_id=BlockId("adapter"), ranges=(SumRange(length=parameters, max_abs=0.5),), bits=bits),
            SummedBlock(
                block_id=BlockId("metrics"),
                ranges=(SumRange(length=3, max_abs=10_000, exact=True), SumRange(length=1, max_abs=1e6)),
            ),
        ),
        min_cohort=3,
        corrupt_fraction=0.1,
        dropout_fraction=0.1,
        stage_deadline_s=60.0,
    )
    return spec, coordinator, keys


def sessions_of(keys: Sequence[IdentityKey], policy: DevicePolicy) -> dict[ParticipantId, DeviceSession]:
    """Each device of the round, of an organisation of its own."""
    return {
        ParticipantId(i): DeviceSession(
            ledger=MemoryLedger(repeats=False),
            identity=key,
            enrolled=Enrolled(device=f"d{i}", organisation=f"o{i}"),
            policy=policy,
        )
        for i, key in enumerate(keys, 1)
    }
