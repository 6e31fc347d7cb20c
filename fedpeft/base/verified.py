"""An artifact is verified on use: every byte is hashed once per process, and once more whenever a file was touched.

A digest that was checked when the base arrived says nothing of the bytes that are read a month later: a disk rots, and
a shared cache has other writers. What was hashed is remembered by device, inode, size and the times of modification and
change of every file; the last of these no program can set. Needs no torch.

A map of the weights shows what is written to the file afterwards, so whoever keeps one asks ``is_as_verified`` before
each use.
"""

import stat
import threading
from pathlib import Path

from fedpeft.base.artifact import MANIFEST_FILE, BaseArtifact
from fedpeft.errors import IntegrityFailed

__all__ = ["is_as_verified", "verified"]

_Stamp = tuple[tuple[int, int, int, int, int], ...]
_lock = threading.Lock()
_known: dict[Path, _Stamp] = {}


def verified(artifact: BaseArtifact) -> BaseArtifact:
    """The artifact, once every byte is what its digest says; quick when this process has looked before.

    Raises:
        IntegrityFailed: names what differs; or a file is a link, or was written to meanwhile.
    """
    with _lock:  # two threads would hash the same gigabytes
        stamp = _stamp(artifact)
        if _known.get(artifact.path) != stamp:
            artifact.verify()
            if _stamp(artifact) != stamp:
                raise IntegrityFailed(
                    f"Expected {artifact.path} to stay as it is, found that it was written to while it was read; "
                    "see who writes there."
                )
            _known[artifact.path] = stamp
    return artifact


def is_as_verified(artifact: BaseArtifact) -> bool:
    """Whether no file was touched since ``verified`` returned in this process; reads no content."""
    try:
        return _known.get(artifact.path) == _stamp(artifact)
    except IntegrityFailed:
        return False


def _stamp(artifact: BaseArtifact) -> _Stamp:
    found = []
    for name in (MANIFEST_FILE, *(file.name for file in artifact.manifest.files)):
        path = artifact.path / name
        try:
            about = path.lstat()
        except OSError as error:
            raise IntegrityFailed(
                f"Expected {path}, found {error.strerror}; delete the folder and build or fetch the base again."
            ) from error
        if not stat.S_ISREG(about.st_mode):
            raise IntegrityFailed(f"Expected a file {path}, found a link or another thing; remove it.")
        found.append((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    return tuple(found)
