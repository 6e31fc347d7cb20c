"""`fedpeft client reset-ledger`: a device that does not know any more what it has signed begins again, carefully.

The new ledger has a barrier: the first round in which a run is heard of counts as signed, so the device joins that run
at the next one (docs/protocol.md, "Device"). It protects against a coordinator that follows the protocol; one that
offers rounds that are long over is not noticed by a device without a memory. Where the marks are whole and the state
of a run alone is damaged, that run's last round counts as signed and the marks of all others stay.
"""

from fedpeft.directory_lock import DirectoryLock
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.secagg import FileLedger
from fedpeft_client.home import DeviceHome

__all__ = ["reset_ledger"]


def reset_ledger(home: DeviceHome) -> str:
    """Drops damaged states of known runs, or makes a new ledger with a barrier; returns what was wrong.

    Raises:
        NotEnrolled: there is no device here.
        ConfigInvalid: the ledger is in order.
        ResourceMissing: the device is running.
    """
    home.enrolment()
    with DirectoryLock(home.path):
        try:
            FileLedger(home.ledger, home.identity()).expect_whole()
        except IntegrityFailed as lost:
            home.state.mkdir(mode=0o700, exist_ok=True)
            try:
                FileLedger(home.ledger, home.identity()).drop_damaged()
            except IntegrityFailed:
                FileLedger.create(home.ledger, home.identity(), barrier=True)
            return str(lost)
    raise ConfigInvalid(f"Expected a lost or damaged ledger in {home.ledger}, found one in order; nothing to reset.")
