"""Durable files: replaced whole or left alone."""

import stat
from pathlib import Path

import pytest

from fedpeft.files import PRIVATE, write_file


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
