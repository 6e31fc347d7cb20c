"""The global state that a device holds of a run: it makes the next one of it (``fedpeft.round.device.last_runs``)."""

from fedpeft.round.device.last_runs import LastRuns
from fedpeft.round.device.records import HeldBlocks
from fedpeft.round.local import DeviceStore

__all__ = ["HELD", "held_state", "hold"]

HELD = "held-blocks"
"""Store key of the run at hand."""

_RUNS = LastRuns(
    at_hand=HELD,
    aside="held",
    index="runs-set-aside",
    nothing=HeldBlocks(run_id="", digests=(), blocks=(), round_id=0, learning_rate_factor=0.0, server=None),
)


def held_state(store: DeviceStore, run_id: str) -> HeldBlocks | None:
    """What this device holds of a run; None: nothing, or not any more."""
    return _RUNS.of(store, run_id)


def hold(store: DeviceStore, record: HeldBlocks) -> None:
    """Replaces what is held of the record's run."""
    _RUNS.keep(store, record)
