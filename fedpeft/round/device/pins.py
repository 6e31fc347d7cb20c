"""A run as a device has known it from its first round on, and whether it can go on with it."""

import hashlib

from fedpeft.errors import SpecMismatch
from fedpeft.round.device.agreed import AgreedRoster
from fedpeft.round.device.records import HeldBlocks, KeptBlocks, OpenRound, RunPin, SeenLinks, kept, run_key
from fedpeft.round.local import DeviceStore
from fedpeft.wire import form_of

__all__ = ["FORMS", "pinned"]

FORMS = hashlib.sha256(
    b"".join(map(form_of, (AgreedRoster, HeldBlocks, KeptBlocks, OpenRound, RunPin, SeenLinks)))
).digest()[:8]
"""Of all that a device keeps of a run; it goes on with no run of which it cannot read one of these."""


def pinned(store: DeviceStore, run_id: str) -> RunPin | None:
    """A run as this device has known it; None at first sight.

    Raises:
        SpecMismatch: it began here under a version of fedpeft whose records this one does not read: neither its open
            round, nor what the device signed for, nor its local blocks would be known.
    """
    pin = kept(store, run_key(run_id), RunPin)
    if store.read(run_key(run_id)) is not None and (pin is None or pin.forms != FORMS):
        raise SpecMismatch(
            f"Expected run {run_id} to have begun on this device under this version of fedpeft, found the records of "
            "another version. Continue with that version here, or ask the operator for a new run."
        )
    return pin
