"""Files that survive a power cut: written whole, synced, renamed, the directory synced; or appended to, synced.

After a crash a file holds its old content or its new one, never a part; a rename is on the disk only once
its directory is. An append may leave a part of itself, which whoever reads the file must
know for what it is. One writer a file at a time: whoever shares a directory between processes holds a lock.
"""

import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fedpeft.errors import ConfigInvalid, ResourceMissing

__all__ = [
    "PRIVATE",
    "SHARED",
    "append_whole",
    "expanded",
    "expect_folder",
    "last_lines",
    "read_bytes",
    "read_text",
    "sync",
    "write_file",
]

PRIVATE = 0o600
"""Readable by the owner only: keys, ledgers, a device's state."""
SHARED = 0o666
"""As the umask says."""


BLOCK = 1 << 16
"""Read at once from the end of a long file."""
MAX_TEXT_BYTES = 16 * 2**20
"""Of a configuration, a token, a site's settings: what a person writes."""


def read_bytes(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a file that the user named, or of a pipe (``<(vault read token)``).

    Raises:
        OSError: it cannot be read, or is a pipe that nobody writes to, whose opening would wait for ever.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        begin = file.read(min(most, BLOCK))  # None: a pipe whose writer has written nothing yet
        if begin == b"" and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.ENXIO, "a pipe that nobody writes to", str(path))
        os.set_blocking(file.fileno(), True)
        content = bytearray(begin or b"")
        while len(content) < most and (more := file.read(min(most - len(content), BLOCK))):
            content += more
    return bytes(content)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: Path) -> str:
    """The text of a file that a person wrote, without the byte order mark that Windows programs put before it.

    Raises:
        ValueError: not UTF-8, or no text; says what was found and what to do.
        OSError: it cannot be read.
    """
    content = read_bytes(path, MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"expected at most {MAX_TEXT_BYTES} bytes, found more")
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise ValueError(f"expected UTF-8, found UTF-32; convert it: iconv -f UTF-32 -t UTF-8 {shlex.quote(path.name)}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:2]:
        raise ValueError(f"expected UTF-8, found UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {shlex.quote(path.name)}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, found byte 0x{content[error.start]:02x} at {error.start}") from None
    if "\0" in text:
        raise ValueError("expected text, found a NUL byte")
    return text


def write_file(path: Path, payload: bytes, *, mode: int = SHARED) -> None:
    """Makes ``path`` hold exactly ``payload``, durably, or leaves it as it was.

    Args:
        path: in a directory that exists.
        payload: the whole content.
        mode: of the new file, before the umask.

    Raises:
        OSError: it cannot be written, or ``path`` is a device, pipe or socket, which a rename would replace.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # what a crash left
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_whole(descriptor: int, payload: bytes, *, durable: bool = True) -> None:
    """Adds ``payload`` at the end of an open file: all of it or, on an error such as a full disk, nothing.

    Args:
        descriptor: of a file opened to write; nobody else may append to it meanwhile.
        payload: what to add.
        durable: whether to return only once it is on the disk.
    """
    start = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        written = 0
        while written < len(payload):  # a full disk takes a part, and raises the next time
            written += os.write(descriptor, payload[written:])
        if durable:
            os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)
        raise


def last_lines(path: Path, most: int, is_before: Callable[[bytes], bool] | None = None) -> tuple[bytes, ...]:
    """The last lines of a file that is appended to, without their newlines; a torn last one is left out.

    Reads as much of the file as these lines take, however long it is.

    Args:
        path: the file; none is one without lines.
        most: how many, at least 1.
        is_before: only lines of which this is true, which is so of all lines up to some place and of none behind it.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return ()
    with file:
        end = _end_of_whole_lines(file)
        if is_before is not None:
            end = _first_not(file, end, is_before)
        begin, held = end, b""
        while begin > 0 and held.count(b"\n") <= most:
            size = min(BLOCK, begin)
            begin -= size
            file.seek(begin)
            held = file.read(size) + held
    lines = held.split(b"\n")[:-1]
    return tuple(lines[1 if begin > 0 else 0 :][-most:])


def _end_of_whole_lines(file: BinaryIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        if (found := file.read(end - begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


def _first_not(file: BinaryIO, end: int, is_before: Callable[[bytes], bool]) -> int:
    """Where the first line begins of which it is not true, by halving."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        start = _line_from(file, middle)
        line = file.readline()
        if start < high and is_before(line.rstrip(b"\n")):
            low = start + len(line)
        else:
            high = middle
    return min(_line_from(file, low), end)


def _line_from(file: BinaryIO, offset: int) -> int:
    """Goes to the first line that begins at this offset or later, and says where."""
    file.seek(max(0, offset - 1))
    if offset > 0:
        file.readline()
    return file.tell()


def sync(path: Path) -> None:
    """Returns once a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~name`` written out.

    Raises:
        ConfigInvalid: there is no such user, or none has a home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigInvalid(f"Expected a path, found no home directory for {str(path)[:200]!r}.") from error


def expect_folder(path: Path) -> None:
    """Returns if files can be written below ``path``, which is left as it was: there, or not there.

    Called before work whose result goes there: hours of training must not end at a misspelt folder.

    Raises:
        ResourceMissing: a file is in the way, or the machine does not allow it.
    """
    made: list[Path] = []
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        with tempfile.TemporaryFile(prefix=".fedpeft-", dir=path):
            """Under a name of its own: several threads may ask at once."""
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        raise ResourceMissing(
            f"Expected a folder at {str(path)[:200]} to write to, found: {reason}; name another folder, or fix "
            "that one."
        ) from error
    finally:
        for folder in reversed(made):
            folder.rmdir()
