"""The cache of bases on a device's disk: what is in use stays, what was used least recently makes room.

A base that a device works with is held by a shared lock on a file beside it, which the system lets go of when the
process ends; only what nobody holds is ever removed, so devices that share a cache do not take each other's base away.
When a base was used last is the time of that file. Without a quota nothing is removed: the disk may not be ours.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft.base.artifact import BaseArtifact
from fedpeft.base.store import STAGING, ArtifactStore
from fedpeft.errors import ResourceMissing

__all__ = ["SPARE_BYTES", "BaseCache"]

SPARE_BYTES = 64 << 20
"""Left free on the disk beside the bases."""
_IN_USE = ".use-"


class BaseCache:
    """One directory of bases, perhaps shared.

    Args:
        path: an artifact store.
        quota_bytes: how much it may hold in all; None: as the disk allows.
    """

    def __init__(self, path: Path, quota_bytes: int | None = None) -> None:
        self.path, self._quota_bytes = path, quota_bytes
        self._held: tuple[str, int] | None = None

    def hold(self, digest: str) -> None:
        """Keep this base, and let go of the one held before."""
        if self._held is not None and self._held[0] == digest:
            os.utime(self._held[1])
            return
        self.release()
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = self._open_mark(digest)
        # Waits at most for another process to find out that this base is to go, and to remove it.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)
        self._held = digest, descriptor

    def release(self) -> None:
        """Hold nothing."""
        if self._held is not None:
            os.close(self._held[1])
            self._held = None

    def make_room(self, digest: str, total_bytes: int, here_bytes: int) -> None:
        """Returns when a base fits; removes others for it if there is a quota.

        Args:
            digest: the base that is to come.
            total_bytes: its size.
            here_bytes: how much of it is on the disk already.

        Raises:
            ResourceMissing: it does not fit; says what is in the way and what to do.
        """
        others = [one for one in ArtifactStore(self.path).ls() if one.digest != digest]
        quota = self._quota_bytes
        if quota is not None:
            if total_bytes > quota:
                raise ResourceMissing(
                    f"Expected {digest[:19]} ({_mib(total_bytes)}) to fit the cache's quota of "
                    f"{_mib(quota)}; raise limits.bases_mb in site.toml."
                )
            for one in sorted(others, key=self._used):
                if _size(others) + total_bytes <= quota and self._free() >= total_bytes - here_bytes + SPARE_BYTES:
                    break
                if self._remove(one):
                    others.remove(one)
            if (held := _size(others)) + total_bytes > quota:
                raise ResourceMissing(
                    f"Expected {digest[:19]} ({_mib(total_bytes)}) to fit the cache's quota of "
                    f"{_mib(quota)}, found {_mib(held)} of it in use by devices that share {self.path}; "
                    "raise limits.bases_mb in site.toml, or wait for their runs to end."
                )
        need = max(0, total_bytes - here_bytes) + SPARE_BYTES
        if (free := self._free()) < need:
            remedy = "set limits.bases_mb in site.toml so that older bases are removed" if others else "make room"
            raise ResourceMissing(
                f"Expected {_mib(need)} free in {self.path} for {digest[:19]}, found {_mib(free)}; {remedy}, or join "
                "with --cache on another disk."
            )

    def _free(self) -> int:
        return shutil.disk_usage(self.path).free

    def _used(self, artifact: BaseArtifact) -> float:
        """When it was used last, seconds since 1970; for one that never was, when it came."""
        mark = self._mark(artifact.digest)
        return (mark if mark.exists() else artifact.path).stat().st_mtime

    def _remove(self, artifact: BaseArtifact) -> bool:
        with self._alone(artifact.digest) as alone:
            if not alone:
                return False
            # Its name goes first: nobody finds half a base.
            gone = self.path / f"{STAGING}removed-{artifact.path.name}"
            artifact.path.rename(gone)
            shutil.rmtree(gone)
            self._mark(artifact.digest).unlink(missing_ok=True)
            return True

    @contextmanager
    def _alone(self, digest: str) -> Iterator[bool]:
        """Whether nobody holds a base, and nobody will while this lasts."""
        descriptor = self._open_mark(digest)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)

    def _open_mark(self, digest: str) -> int:
        return os.open(self._mark(digest), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def _mark(self, digest: str) -> Path:
        return self.path / f"{_IN_USE}{digest.removeprefix('sha256:')}"


def _size(artifacts: list[BaseArtifact]) -> int:
    return sum(one.size_bytes for one in artifacts)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
