"""Which errors of the operating system tell of the machine that a command runs on, and not of a bug."""

import errno
import os
from collections.abc import Sequence

__all__ = ["is_of_this_machine"]

_MACHINE_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EADDRINUSE,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.EXDEV,
    }
)
"""Operating-system errors that tell of this machine, not of a bug in fedpeft."""

_PATH_ERRNOS = frozenset({errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY})
"""Those of them that a bug makes as easily: they tell of this machine where the path is one that the user named."""


def is_of_this_machine(error: OSError, given: Sequence[str]) -> bool:
    """Whether an operating-system error tells of this machine, or of a path that the user named."""
    if error.errno not in _PATH_ERRNOS:
        return error.errno in _MACHINE_ERRNOS
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    failed = os.path.abspath(os.fsdecode(error.filename))
    words = [part for word in given for part in (word, word.partition("=")[2]) if part and not part.startswith("-")]
    places = [os.environ.get(name, "") for name in ("FEDPEFT_HOME", "HOME", "TMPDIR")]
    named = [os.path.abspath(word) for word in (*words, *places, "runs") if word and "\0" not in word]
    beside = os.path.dirname(failed)  # a file is written as another one beside it, and then renamed
    return any(
        _inside(failed, place) or _inside(place, failed) or beside == os.path.dirname(place)
        for place in named
        if place != os.sep
    )


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
