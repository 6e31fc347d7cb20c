"""The global state that a device holds of a run: of the one at hand, and of a few that were at hand before.

A device makes the next state of the one that it holds. So a round of another run in between must not make it forget:
its coordinator would only have to ask for one, and could then send any state.
"""

from dataclasses import dataclass

from fedpeft.round.device.records import HeldBlocks, kept, run_key
from fedpeft.round.local import DeviceStore
from fedpeft.wire import encode, message

__all__ = ["ASIDE", "HELD", "held_state", "hold"]

HELD = "held-blocks"
"""Store key of the run at hand."""

ASIDE = 3
"""Runs whose states are kept beside it: a coordinator that asks for rounds of more could as well leave out a round of
this one (docs/threat-model.md, "Missed rounds")."""

_INDEX, _KIND = "runs-set-aside", "held"
_NOTHING = HeldBlocks(run_id="", digests=(), blocks=(), round_id=0, learning_rate_factor=0.0, server=None)


@message(0x018B, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Store record: the runs whose states were set aside, the last one last."""

    runs: tuple[str, ...]


def held_state(store: DeviceStore, run_id: str) -> HeldBlocks | None:
    """What this device holds of a run; None: nothing, or not any more."""
    found = (kept(store, key, HeldBlocks) for key in (HELD, run_key(run_id, _KIND)))
    return next((record for record in found if record is not None and record.run_id == run_id), None)


def hold(store: DeviceStore, record: HeldBlocks) -> None:
    """Replaces what is held of the record's run; of another run that was at hand the state is set aside first."""
    before = kept(store, HELD, HeldBlocks)
    if before is not None and before.run_id != record.run_id:
        _set_aside(store, before)
    store.write(HELD, encode(record))


def _set_aside(store: DeviceStore, record: HeldBlocks) -> None:
    seen = kept(store, _INDEX, SetAside)
    runs = [run_id for run_id in (seen.runs if seen else ()) if run_id != record.run_id]
    for run_id in runs[: max(0, len(runs) - ASIDE + 1)]:
        store.write(run_key(run_id, _KIND), encode(_NOTHING))
    store.write(run_key(record.run_id, _KIND), encode(record))
    store.write(_INDEX, encode(SetAside(runs=(*runs, record.run_id)[-ASIDE:])))
