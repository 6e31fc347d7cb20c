"""Durable files: replaced whole or left alone."""

import os
import stat
import threading
from pathlib import Path

import pytest

from fedpeft.errors import ConfigInvalid, ResourceMissing
from fedpeft.files import BLOCK, PRIVATE, expanded, expect_folder, read_bytes, write_file


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_file(target, b"a longer text")
    write_file(target, b"short")
    assert target.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_crash_left_beside_it_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".a.tmp").write_bytes(b"half")
    write_file(tmp_path / "a", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_private_file_is_its_owners_from_the_first_byte_even_where_a_shared_one_was(tmp_path: Path) -> None:
    target = tmp_path / "key"
    write_file(target, b"old")
    write_file(target, b"secret", mode=PRIVATE)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "not/yet/there"):
        expect_folder(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    "place", ["file", "file/x/y", "n" * 300, "a/" + "n" * 300 + "/b", "a\0b", "/proc/x/y", "/dev/null/x"]
)
def test_a_folder_that_cannot_be_written_is_refused_and_nothing_is_left(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceMissing, match="folder"):
        expect_folder(tmp_path / place)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_a_user_who_does_not_exist_has_no_folder() -> None:
    with pytest.raises(ConfigInvalid, match="no home directory"):
        expanded("~no-such-user/models")
    assert expanded("models/a") == Path("models/a")


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        write_file(pipe, b"x")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody writes to"):
        read_bytes(tmp_path / "pipe", 10)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_files_and_pipes_are_read_to_their_end_or_the_limit(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    out, into = os.pipe()
    writer = threading.Timer(0.05, _write_and_close, (into, content))  # the reader is there first, and waits
    writer.start()
    try:
        assert read_bytes(Path(f"/dev/fd/{out}"), size + 1) == content
    finally:
        writer.join()
        os.close(out)
    for most in (size - 1, size, size + 1):
        assert read_bytes(tmp_path / "file", most) == content[:most]
    assert len(read_bytes(Path("/dev/zero"), size)) == size


def _write_and_close(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
