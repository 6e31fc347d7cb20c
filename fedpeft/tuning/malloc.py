"""Where the C library puts large tensors, for training that must not take more memory than it uses.

glibc's heap holds on to freed pieces between pieces that stay, and a step frees and keeps in turn: with layers computed
again SmolLM2's step of 8 x 128 peaked at 1,404 MB, 700 of them holes. Pieces that are mapped one by one go back at
once; the system then clears their pages anew each time, about a third more time (docs/methods.md).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["returning_memory"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 2**20
_LARGEST = 32 * 2**20  # where glibc's own, growing threshold ends


@contextmanager
def returning_memory(wanted: bool) -> Iterator[None]:
    """Inside, if wanted and the C library is glibc, a freed tensor of 1 MiB or more is given back at once.

    It holds for the whole process; afterwards large pieces come from the heap again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if wanted and sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
