"""``KeptFile``: what is on the disk after any crash, what stays of earlier contents, and who may have changed it."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import IntegrityFailed
from fedpeft.files import write_file
from fedpeft.kept_file import IN_PLACE_BYTES, KeptFile

contents = st.lists(st.binary(max_size=9000), min_size=1, max_size=8)


@given(contents, st.booleans())
def test_what_was_written_last_is_read(tmp_path_factory: pytest.TempPathFactory, all_of, again) -> None:
    path = tmp_path_factory.mktemp("kept") / "state"
    file = KeptFile(path)
    assert file.read() is None
    for content in all_of:
        (KeptFile(path) if again else file).write(content)
        assert file.read() == KeptFile(path).read() == content


def test_an_earlier_content_is_overwritten(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "state")
    for content in (b"the root of round 1" * 90, b"closed", b"the root of round 2"):
        file.write(content)
    left = (tmp_path / "state").read_bytes()
    assert b"round 2" in left
    assert b"round 1" not in left
    assert b"closed" not in left


@pytest.mark.parametrize("written", [0, 1, 47, 48, 49, 500, 1000])
def test_a_power_cut_in_a_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Any part of the new half may be on the disk, and nothing that the process does after it."""
    path = tmp_path / "state"
    file = KeptFile(path)
    file.write(b"a" * 900)
    file.write(b"b" * 900)
    put = os.pwrite

    def cut(descriptor: int, payload: memoryview, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("the power is off"))
        put(descriptor, bytes(payload)[: min(written, len(payload) - 1)], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", cut)
    with pytest.raises((KeyboardInterrupt, pytest.fail.Exception)):
        file.write(b"c" * 900)
    monkeypatch.undo()
    assert KeptFile(path).read() == b"b" * 900
    KeptFile(path).write(b"d" * 900)
    assert KeptFile(path).read() == b"d" * 900


def test_a_power_cut_before_the_zeros_are_on_the_disk_leaves_the_new_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, put, puts = tmp_path / "state", os.pwrite, []
    file = KeptFile(path)
    file.write(b"old")

    def once(descriptor: int, payload: memoryview, offset: int) -> int:
        puts.append(offset)
        return put(descriptor, payload, offset) if len(puts) == 1 else len(payload)

    monkeypatch.setattr(os, "pwrite", once)
    file.write(b"new")
    monkeypatch.undo()
    assert len(puts) == 2, "the content, and the zeros over the other half"
    assert KeptFile(path).read() == b"new"
    KeptFile(path).write(b"newer")
    assert KeptFile(path).read() == b"newer"


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeptFile(tmp_path / "state")
    file.write(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        file.write(b"new")
    assert file.read() == b"old"


def test_a_changed_byte_of_the_content_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = KeptFile(path)
    file.write(b"one" * 9)
    file.write(b"two" * 9)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"twotwo", b"twoTwo", 1))
    with pytest.raises(IntegrityFailed, match="damaged"):
        file.read()
    file.write(b"three")
    assert file.read() == b"three"


def test_what_a_power_cut_left_of_an_earlier_content_goes_with_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zeros over the long content never came to the disk, and all that is written afterwards is shorter."""
    path, put = tmp_path / "state", os.pwrite
    file = KeptFile(path)
    file.write(b"first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda handle, part, at: put(handle, part, at) if any(bytes(part)) else len(part))
        file.write(b"the root " * 300)
        file.write(b"x" * 3000)
    assert b"the root" in path.read_bytes()
    again = KeptFile(path)
    again.write(b"closed")
    assert b"the root" not in path.read_bytes()
    assert KeptFile(path).read() == b"closed"


def test_zeros_that_could_not_be_written_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, put = tmp_path / "state", os.pwrite
    file = KeptFile(path)
    file.write(b"the root " * 300)

    def no_zeros(handle: int, part: memoryview, at: int) -> int:
        if not any(bytes(part)):
            raise OSError(5, "Input/output error")
        return put(handle, part, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_zeros)
        file.write(b"second")
    assert b"the root" in path.read_bytes()
    file.write(b"third")
    assert b"the root" not in path.read_bytes()


def test_a_damaged_header_is_noticed(tmp_path: Path) -> None:
    """Each bit of what it says and some of what fills its block; and a sector that the disk has lost."""
    path = tmp_path / "state"
    for content in (b"d" * 32, b"e" * 9000):
        file = KeptFile(path)
        file.write(content)
        file.write(content)  # in the second half, whose place the header tells
        whole = path.read_bytes()
        places = [(place, 1 << bit) for place in (*range(56), 56, 600, 4095) for bit in range(8)]
        for place, bit in places:
            with path.open("r+b") as damaged:
                damaged.seek(place)
                damaged.write(bytes([whole[place] ^ bit]))
            with pytest.raises(IntegrityFailed, match="damaged"):
                KeptFile(path).read()
            with path.open("r+b") as mended:
                mended.seek(place)
                mended.write(whole[place : place + 1])
        assert KeptFile(path).read() == content
        for lost in (bytes(512), b"\xff" * 4096):
            path.write_bytes(lost + whole[len(lost) :])
            with pytest.raises(IntegrityFailed, match="damaged"):
                KeptFile(path).read()
        path.write_bytes(whole[:4000])
        with pytest.raises(IntegrityFailed, match="damaged"):
            KeptFile(path).read()
        file.write(b"anew")
        assert file.read() == b"anew"


@settings(max_examples=30)
@given(st.binary(max_size=100).filter(lambda part: not part.startswith(b"fedpeft")), st.sampled_from([1, 99, 999]))
def test_any_whole_content_is_read_as_what_it_is(
    tmp_path_factory: pytest.TempPathFactory, part: bytes, times: int
) -> None:
    path = tmp_path_factory.mktemp("kept") / "state"
    path.write_bytes(part * times)
    assert KeptFile(path).read() == part * times


def test_a_file_that_others_may_read_is_the_owners_again(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = KeptFile(path)
    file.write(b"one")
    path.chmod(0o644)
    file.write(b"two")
    assert (stat.S_IMODE(path.stat().st_mode), file.read()) == (0o600, b"two")


def test_a_copy_by_hard_link_keeps_what_it_had(tmp_path: Path) -> None:
    """As backups make them."""
    path, copy = tmp_path / "state", tmp_path / "backup"
    KeptFile(path).write(b"then")
    os.link(path, copy)
    KeptFile(path).write(b"now")
    assert (KeptFile(copy).read(), KeptFile(path).read()) == (b"then", b"now")


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    path, other = tmp_path / "state", tmp_path / "other"
    KeptFile(other).write(b"of somebody else")
    path.symlink_to(other)
    KeptFile(path).write(b"mine")
    assert (KeptFile(path).read(), KeptFile(other).read()) == (b"mine", b"of somebody else")


def test_a_file_that_was_written_as_a_whole_is_read_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_file(path, b"whole", mode=0o600)
    assert KeptFile(path).read() == b"whole"
    KeptFile(path).write(b"halves")
    assert KeptFile(path).read() == b"halves"


def test_a_large_content_is_one_file_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for content in (b"small", b"x" * (IN_PLACE_BYTES + 1), b"small again"):
        KeptFile(path).write(content)
        assert KeptFile(path).read() == content
        assert path.stat().st_size <= len(content) + 2 * 4096
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
