"""A full disk: what counts as one, and whether there is room again.

The coordinator then commits nothing, keeps its devices, says so in /readyz and `status`, and goes on by itself once
there is room: a round that could not be committed is repeated, the one before it stands.
"""

import errno
import os
import shutil
from pathlib import Path

from fedpeft.errors import ResourceMissing

__all__ = ["DiskFull", "expect_room", "is_full", "room_needed"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LEAST_BYTES = 1 << 20
COPIES = 4
"""Of a checkpoint: the new one, its adapter, and both of the best state."""


class DiskFull(ResourceMissing):
    """The coordinator's disk has no room for the next commit."""


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room: on the disk, in a quota, or within a limit on files."""
    return error.errno in _FULL


def room_needed(run: Path | None) -> int:
    """What the next round of a run may write, in bytes: by its newest checkpoint.

    Args:
        run: its directory; None before there is one.
    """
    checkpoints = sorted((run / "checkpoints").glob("r*/")) if run is not None else []
    newest = sum(file.stat().st_size for file in checkpoints[-1].iterdir()) if checkpoints else 0
    return LEAST_BYTES + COPIES * newest


def expect_room(folder: Path, need_bytes: int) -> None:
    """Returns when so much can be written in ``folder``; a part of it is, and removed.

    Raises:
        DiskFull: says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise DiskFull(
            f"Expected {need_bytes / 2**20:.1f} MiB free in {folder} for the next round, found {free / 2**20:.1f} MiB; "
            "make room: every committed round is kept, and the run continues by itself."
        )
    probe = folder / f".room-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(LEAST_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFull(
            f"Expected to write {folder}, found {error.strerror}; make room: every committed round stands, and the run "
            "continues by itself."
        ) from error
    finally:
        probe.unlink(missing_ok=True)
