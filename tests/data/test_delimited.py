"""The quick way through CSV against the csv module: the same rows, lines and problems, whatever the bytes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data import records, text_files
from fedpeft.data.delimited import csv_batches, reader
from fedpeft.data.delimited.split import Split, split
from fedpeft.data.formats import load
from fedpeft.data.records import ProblemLog, Texts
from fedpeft.errors import DataInvalid, Problem

Rows = list[tuple[int, dict[str, object]]]

HEAD = "text,label\n"
NASTY: dict[str, str | bytes] = {
    "plain": "a,x\nb,y\n",
    "quotes": '"a, b",x\n"say ""hi""",y\n"",""\n"""",z\n',
    "line ends inside": '"one\ntwo\n\nthree",x\nb,y\n"a\r\nb",z\n',
    "cr lf": "a,x\r\nb,\r\n,y\r\n",
    "cr alone": "a,x\rb,y\nc,z\n",
    "cr before a field's end": "a\r,x\nc,z\n",
    "blank lines": "a,x\n\n\r\nb,y\n",
    "no last line end": "a,x\nb,y",
    "ragged": "a,x\nb\nc,y,z\nd,w\n",
    "two lines that make up for each other": "a\nb,x,y\nc,z\n",
    "quote inside": '5" disk,x\n6" disk,y\nc,z\n',
    "quotes unquoted and even": 'a""b,x\nc,z\n',
    "after a quote": '"a"b,x\nc,z\n"d" ,y\n',
    "between quotes": '"ab"cd"ef",x\nc,z\n',
    "never closed": 'a,x\n"open,y\nb,z\n',
    "nul": "a\0b,x\nc,z\n",
    "accents": "naïve,x\n日本,y\n",
    "latin-1": b"na\xefve,x\nc,z\n",
    "cut character": b"a,x\n\xe6\x97",
    "surrogates": b"\xed\xa0\xbd,x\nb,y\n",
    "bom inside": "\ufeffa,x\n",
    "long field": "a" * 140_000 + ",x\nb,y\n",
    "white space": " a , x \n\t,\x0b\n",
    "other ends of lines": "a\x1cb,x\u2028\nc\x85,y\n",
}


def read(path: Path, *, quick: bool, block: int, delimiter: str = ",") -> tuple[Rows, list[Problem], int, int]:
    """Rows, problems, their number, and how many blocks went the quick way."""
    taken = 0

    def counted(content: bytes, mark: str, header: Sequence[str]) -> Split | None:
        nonlocal taken
        found = split(content, mark, header) if quick else None
        taken += found is not None
        return found

    log, rows = ProblemLog(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        patch.setattr(records, "MAX_PROBLEMS", 10**6)
        patch.setattr(reader, "split", counted)
        for batch in csv_batches(path, log, delimiter=delimiter):
            names = tuple(batch.columns)
            for number, *fields in zip(batch.lines, *batch.columns.values(), strict=True):
                rows.append((int(number), dict(zip(names, fields, strict=True))))
    # A block is decoded before its rows are read, so the order of problems depends on where blocks end.
    return rows, sorted(log.problems, key=repr), log.count, taken


def agree(content: bytes, block: int, delimiter: str = ",") -> int:
    """Both ways give the same; returns how many blocks went the quick way."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(content)
        *exact, _ = read(path, quick=False, block=2**20, delimiter=delimiter)
        *found, taken = read(path, quick=True, block=block, delimiter=delimiter)
    assert found == exact
    return taken


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("block", [1, 7, 30, 300_000])
def test_a_nasty_file_is_read_the_same_way_quickly(name: str, block: int) -> None:
    body = NASTY[name]
    agree(HEAD.encode() + (body if isinstance(body, bytes) else body.encode()) + b"last,l\n", block)


@given(st.text(st.sampled_from('ab",;\r\n\n\0é '), max_size=60), st.integers(1, 40), st.sampled_from(",;"))
def test_any_bytes_are_read_the_same_way_quickly(body: str, block: int, delimiter: str) -> None:
    agree(f"text{delimiter}label\n{body}".encode(), block, delimiter)


FIELDS = st.text(st.sampled_from('ab",;\r\n é'), max_size=6)


@given(st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=12), st.integers(1, 40), st.booleans())
def test_what_the_csv_module_writes_goes_the_quick_way_and_is_read_again(
    rows: list[tuple[str, str, str]], block: int, all_quoted: bool
) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL).writerows([("a", "b", "c"), *rows])
    agree(written.getvalue().encode(), block)
    body = written.getvalue().partition("\n")[2].encode()
    if rows and all_quoted:  # a row of empty fields and a carriage return alone are quoted: nothing is declined
        found = split(body, ",", ("a", "", "c"))
        assert found is not None
        assert found.rest == b""
        assert list(found.columns) == ["a", "c"]
        assert list(zip(found.columns["a"], found.columns["c"], strict=True)) == [(a, c) for a, _, c in rows]


def test_a_large_file_goes_the_quick_way_and_its_rows_keep_their_lines(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    labels = ("x", "y, z", 'say "w"')
    rows = [(f"text {i} é" + "\n" * int(draw.integers(3)), labels[draw.integers(3)]) for i in range(3000)]
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows([("text", "label"), *rows])
    assert agree(written.getvalue().encode(), 2000) > 30
    path = tmp_path / "a.csv"
    path.write_text(written.getvalue(), encoding="utf-8")
    records = load(str(path)).records
    assert [(row["text"], row["label"]) for row in records] == rows
    lines = written.getvalue().split("\n")
    begins = [lines[int(origin.rpartition(":")[2]) - 1].lstrip('"') for origin in records.origins]
    assert all(line.startswith(f"text {i} ") for i, line in enumerate(begins))


def test_a_bad_row_far_inside_a_large_file_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 500)
    path = tmp_path / "a.csv"
    path.write_text(HEAD + "plain text,x\n" * 999 + "one,two,three\n" + '"two\nlines",y\n' * 999 + "alone\n")
    with pytest.raises(DataInvalid) as refused:
        load(str(path))
    assert [problem.where for problem in refused.value.problems] == [f"{path}:1001", f"{path}:3000"]


def test_texts_give_back_each_text() -> None:
    found = split('é,"a ""b"""\n,x\n'.encode(), ",", ("one", "two"))
    assert found is not None
    texts = found.columns["two"]
    assert isinstance(texts, Texts)
    assert (list(found.columns["one"]), list(texts), len(texts)) == (["é", ""], ['a "b"', "x"], 2)
