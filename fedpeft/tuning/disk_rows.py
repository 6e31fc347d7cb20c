"""Rows of float32 on the disk instead of in memory."""

import os
import tempfile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.errors import ResourceMissing

__all__ = ["DiskRows"]

_BYTES_A_VALUE = 4


class DiskRows:
    """A file without a name, (rows, width) of float32, read and written by spans of rows.

    It has no name from the start, so nobody else can open it and the system frees it when the process ends,
    however it ends. The operating system keeps in its page cache what it has room for: resident memory does not grow.
    Threads may read at once, and write to different rows.

    Args:
        rows, width: its size; reserved at once, so that a full disk is found before anything is computed.

    Raises:
        ResourceMissing: there is no room for it where temporary files lie.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.width = width
        self._row_bytes = width * _BYTES_A_VALUE
        self._file = tempfile.TemporaryFile(prefix="fedpeft-", buffering=0)  # noqa: SIM115  closed with this object
        if rows == 0:
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, rows * self._row_bytes)
        except OSError as error:
            self._file.close()
            raise ResourceMissing(
                f"Expected {rows * self._row_bytes / 2**20:.0f} MiB free in {tempfile.gettempdir()} for activations "
                f"that are computed once, found less ({error.strerror}). Free some, point TMPDIR to a larger disk of "
                "this device, or lower cache_mb."
            ) from error

    def read(self, start: int, count: int) -> Tensor:
        """Rows ``start`` to ``start + count``, (count, width) float32 in memory."""
        rows: npt.NDArray[np.float32] = np.empty((count, self.width), np.float32)
        view, offset = rows.data.cast("B"), start * self._row_bytes
        done = 0
        while done < len(view):
            step = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if step == 0:
                raise EOFError(f"row {start} of the spilled activations is beyond their end")
            done += step
        return torch.from_numpy(rows)

    def write(self, start: int, rows: Tensor) -> None:
        """Puts (count, width) float32 at row ``start``."""
        view, offset = rows.contiguous().numpy().data.cast("B"), start * self._row_bytes
        done = 0
        while done < len(view):
            done += os.pwrite(self._file.fileno(), view[done:], offset + done)
