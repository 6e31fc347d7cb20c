"""Journals cut at any byte, and folders replaced or left alone."""

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import IntegrityFailed
from fedpeft.files import write_file
from fedpeft_server.run.journal import Journal, write_folder

objects = st.lists(st.text(max_size=8).map(lambda text: f'{{"k": {len(text)}}}'), max_size=6)


@given(objects, st.data())
def test_a_journal_cut_at_any_byte_holds_exactly_the_lines_that_were_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], data: st.DataObject
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "a.jsonl")
    for line in lines:
        journal.append(line, durable=False)
    whole = journal.path.read_bytes() if lines else b""
    cut = data.draw(st.integers(0, len(whole)))
    journal.path.write_bytes(whole[:cut])
    expected = tuple(lines[: whole[:cut].count(b"\n")])
    assert journal.lines() == expected
    torn = journal.truncate_torn()
    assert journal.path.stat().st_size == cut - torn
    journal.append('{"next": 1}', durable=True)
    assert journal.lines() == (*expected, '{"next": 1}')


@given(st.binary(min_size=1, max_size=30).filter(lambda tail: b"\n" not in tail))
def test_garbage_after_the_last_line_is_a_torn_line(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "a.jsonl")
    journal.append('{"k": 1}', durable=False)
    for ending in (b"", b"\n"):
        journal.path.write_bytes(b'{"k": 1}\n' + tail + ending)
        if not (ending and tail.strip().startswith(b"{")):
            assert journal.lines() == ('{"k": 1}',)


def test_a_page_of_zeros_at_the_end_is_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.path.write_bytes(b'{"k": 1}\n' + bytes(4096))
    assert journal.truncate_torn() == 4096
    assert journal.lines() == ('{"k": 1}',)


def test_garbage_before_the_last_line_is_damage(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.path.write_bytes(b'{"k": 1}\n\0\0\n{"k": 2}\n')
    with pytest.raises(IntegrityFailed, match="line 2"):
        journal.lines()


def test_an_absent_journal_is_an_empty_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    assert (journal.lines(), journal.truncate_torn()) == ((), 0)


def test_a_line_that_the_disk_takes_only_half_of_is_taken_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.append('{"k": 1}', durable=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # the kernel takes 11 bytes more, then refuses
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append('{"k": "a longer line"}', durable=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.path.read_bytes() == b'{"k": 1}\n'


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"one")
    write_file(tmp_path / "a", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"two")]


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "r", {"a": b"1", "no/such": b"2"})
    assert not (tmp_path / "r").exists()
    write_folder(tmp_path / "r", {"a": b"1", "b": b"2"})
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
