"""The last lines of a long file, against reading all of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedpeft.files
from fedpeft.files import last_lines


@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    torn=st.booleans(),
    most=st.integers(1, 12),
    before=st.one_of(st.none(), st.integers(-1, 32)),
    block=st.sampled_from([1, 3, 16, 65536]),
)
def test_they_are_those_that_reading_everything_gives(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    torn: bool,
    most: int,
    before: int | None,
    block: int,
) -> None:
    lines = [b"%d:" % number + b"x" * length for number, length in enumerate(lengths)]
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b"99:torn" * torn)
    wanted = [line for line in lines if before is None or int(line.split(b":")[0]) < before][-most:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedpeft.files, "BLOCK", block)
        found = last_lines(path, most, None if before is None else lambda line: int(line.split(b":")[0]) < before)
    assert list(found) == wanted


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none", 3) == ()
