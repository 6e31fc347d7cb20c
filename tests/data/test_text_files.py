import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data import text_files
from fedpeft.data.delimited import csv_batches
from fedpeft.data.records import ProblemLog


@pytest.fixture
def log() -> ProblemLog:
    return ProblemLog()


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_rows(path: Path, log: ProblemLog) -> Iterator[text_files.Row]:
    """Line and row, as ``read_json`` gives them."""
    for batch in csv_batches(path, log):
        names = tuple(batch.columns)
        for number, *fields in zip(batch.lines, *batch.columns.values(), strict=True):
            yield number, dict(zip(names, fields, strict=True))


def test_jsonl_rows_carry_their_line_and_blank_lines_are_skipped(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "é"}\n\n{"text": "b", "n": 1}')
    assert list(text_files.read_jsonl(path, log)) == [(1, {"text": "é"}), (3, {"text": "b", "n": 1})]
    assert log.count == 0


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"text": "a"', "delimiter"),
        ("[1, 2]", "list"),
        ('"text"', "str"),
        ('{"label": NaN}', "NaN"),
        ('{"label": -Infinity}', "-Infinity"),
        ("[" * 100_000, "nesting too deep"),
    ],
)
def test_a_bad_json_line_is_named_and_the_others_are_read(
    tmp_path: Path, log: ProblemLog, line: str, found: str
) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "c"}}\n')
    assert [number for number, _ in text_files.read_jsonl(path, log)] == [1, 3]
    (problem,) = log.problems
    assert problem.where == f"{path}:2"
    assert found in problem.found


def test_a_line_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    list(text_files.read_jsonl(path, log))
    (problem,) = log.problems
    assert problem.where == f"{path}:2"
    assert "0xe9 at position 13" in problem.found
    assert "iconv" in problem.remedy


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path, log: ProblemLog) -> None:
    csv = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\nhi,x\r\n")
    assert list(csv_rows(csv, log)) == [(2, {"text": "hi", "label": "x"})]
    jsonl = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hi"}')
    assert list(text_files.read_jsonl(jsonl, log)) == [(1, {"text": "hi"})]
    array = write(tmp_path / "a.json", b'\xef\xbb\xbf [{"text": "hi"}]')
    assert list(text_files.read_json(array, log)) == [(1, {"text": "hi"})]
    assert log.count == 0


def test_utf16_is_told_once_and_not_line_by_line(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.csv", "text,label\nhi,x\nho,y\n".encode("utf-16"))
    assert list(csv_rows(path, log)) == []
    (problem,) = log.problems
    assert problem.found == "UTF-16"


def test_a_line_beyond_the_limit_ends_the_file(
    tmp_path: Path, log: ProblemLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 100)
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' + json.dumps({"text": "x" * 200}) + "\n")
    assert [number for number, _ in text_files.read_jsonl(path, log)] == [1]
    assert log.problems[0].where == f"{path}:2"


def test_a_json_array_is_read_by_position(tmp_path: Path, log: ProblemLog) -> None:
    path = write(
        tmp_path / "alpaca.json", '[{"instruction": "a", "output": "b"}, 3, {"instruction": "c", "output": "d"}]'
    )
    assert [number for number, _ in text_files.read_json(path, log)] == [1, 3]
    assert log.problems[0].where == f"{path}:2"


def test_a_broken_json_array_is_one_problem(tmp_path: Path, log: ProblemLog) -> None:
    assert list(text_files.read_json(write(tmp_path / "a.json", '[{"text": "a"},'), log)) == []
    assert log.count == 1


def test_a_json_file_of_lines_is_read_as_jsonl(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n')
    assert len(list(text_files.read_json(path, log))) == 2


def test_csv_quotes_commas_and_line_ends_inside_a_field(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.csv", 'text,label\r\n"one, ""two""\nthree",x\r\nplain,y\r\n\r\n')
    assert list(csv_rows(path, log)) == [
        (2, {"text": 'one, "two"\nthree', "label": "x"}),
        (4, {"text": "plain", "label": "y"}),
    ]
    assert log.count == 0


def test_a_csv_row_with_another_number_of_fields_is_named(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.csv", "text,label\nfine,x\ntoo,many,y\nfew\nfine,z\n")
    assert [row["label"] for _, row in csv_rows(path, log)] == ["x", "z"]
    assert [(p.where, p.found) for p in log.problems] == [(f"{path}:3", "3"), (f"{path}:4", "1")]


def test_a_bad_byte_does_not_shift_the_line_numbers_of_a_csv(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.csv", b"text,label\ncaf\xe9,x\nonly\n")
    list(csv_rows(path, log))
    assert [p.where for p in log.problems] == [f"{path}:2", f"{path}:3"]


def test_a_huge_csv_field_is_a_problem_and_not_a_crash(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},x\nfine,y\n")
    assert [row["label"] for _, row in csv_rows(path, log)] == ["y"]
    assert "Parquet" in log.problems[0].remedy


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_mark_between_columns_is_taken_from_the_header(tmp_path: Path, log: ProblemLog, mark: str) -> None:
    path = write(tmp_path / "a.csv", f'text{mark}label\n"a, b; c"{mark}x\n')
    assert list(csv_rows(path, log)) == [(2, {"text": "a, b; c", "label": "x"})]


@pytest.mark.parametrize("header", [",text,label", "text,label,", "text,,label", ",text,,label"])
def test_a_nameless_column_does_no_harm(tmp_path: Path, log: ProblemLog, header: str) -> None:
    values = ",".join({"text": "a", "label": "x"}.get(name, "0") for name in header.split(","))
    path = write(tmp_path / "a.csv", f"{header}\n{values}\n")
    assert list(csv_rows(path, log)) == [(2, {"text": "a", "label": "x"})]


def test_a_name_twice_is_refused_in_a_header(tmp_path: Path, log: ProblemLog) -> None:
    assert list(csv_rows(write(tmp_path / "a.csv", "text,label,text\na,b,c\n"), log)) == []
    assert "'text' twice" in log.problems[0].found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text,label\na,x\n".encode("utf-16-le"), "UTF-16LE"),
        ("text,label\na,x\n".encode("utf-16-be"), "UTF-16BE"),
        (b"text,label\ra,x\rb,y\r", "CR alone"),
        (b"PK\x03\x04 a spreadsheet", "zip"),
        (b"\x1f\x8b\x08\x00 shard", "gzip"),
        (b"PAR1 columns", "Parquet"),
        (b"text,label\na\x00b,x\n", "NUL"),
    ],
)
def test_what_is_no_text_in_utf8_is_named_once_with_a_remedy(
    tmp_path: Path, log: ProblemLog, content: bytes, found: str
) -> None:
    list(csv_rows(write(tmp_path / "a.csv", content), log))
    (problem,) = log.problems
    assert found in problem.found
    assert problem.remedy


def test_an_object_that_holds_the_rows_is_told_how_to_take_them_out(tmp_path: Path, log: ProblemLog) -> None:
    path = write(tmp_path / "a.json", json.dumps({"version": 1, "data": [{"text": "a"}]}, indent=1))
    assert list(text_files.read_json(path, log)) == []
    (problem,) = log.problems
    assert "jq -c '.data[]'" in problem.remedy


@pytest.mark.parametrize("line", ['{"text": "a", "text": "b"}', '{"text": "a", "n": 1e999}', f'{{"n": {"9" * 5000}}}'])
def test_what_json_lets_through_and_others_choke_on_is_named(tmp_path: Path, log: ProblemLog, line: str) -> None:
    assert list(text_files.read_jsonl(write(tmp_path / "a.jsonl", line), log)) == []
    assert log.problems[0].where.endswith(":1")


def test_an_unclosed_quote_is_a_problem(tmp_path: Path, log: ProblemLog) -> None:
    list(csv_rows(write(tmp_path / "a.csv", 'text,label\n"open,x\n'), log))
    assert log.count == 1


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig", "utf-8"]
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_every_form_of_unicode_is_read_or_told_once_with_its_name(
    tmp_path: Path, log: ProblemLog, encoding: str, name: str
) -> None:
    content = "text,label\nhi,x\n" if name == "a.csv" else '{"text": "hi", "label": "x"}\n' * 3
    path = write(tmp_path / name, content.encode(encoding))
    rows = list((csv_rows if name == "a.csv" else text_files.read_json)(path, log))
    if encoding.startswith("utf-8"):
        assert rows[0][1]["text"] == "hi"
        assert not log.count
        return
    (problem,) = log.problems
    plain = encoding.upper().removesuffix("-LE").removesuffix("-BE")
    assert problem.found.startswith(plain)
    assert f"iconv -f {problem.found.split()[0]} -t UTF-8" in problem.remedy
    assert rows == []


@pytest.mark.parametrize("before", ["\n", "\r\n\n", "sep=;\n", '"sep=;"\r\n\n', "  \n"])
def test_lines_before_the_header_that_say_nothing_are_skipped_and_counted(
    tmp_path: Path, log: ProblemLog, before: str
) -> None:
    path = write(tmp_path / "a.csv", before + "text;label\na;x\n")
    assert list(csv_rows(path, log)) == [(before.count("\n") + 2, {"text": "a", "label": "x"})]
    assert not log.count


def test_a_line_that_names_no_separator_is_a_header(tmp_path: Path, log: ProblemLog) -> None:
    assert list(csv_rows(write(tmp_path / "a.csv", "sep=\na\n"), log)) == [(2, {"sep=": "a"})]


def test_a_comment_before_the_header_is_told_once(tmp_path: Path, log: ProblemLog) -> None:
    list(csv_rows(write(tmp_path / "a.csv", "# by me\ntext,label\n" + "a,x\n" * 9), log))
    (problem,) = log.problems
    assert problem.found == "a comment"


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html>\n", "a web page"),
        (b"PK\x03\x04rest\n", "zip"),
        (b"PAR1rest\n", "Parquet"),
        (b"\x04\x22\x4d\x18rest\n", "lz4"),
    ],
)
def test_what_is_no_table_at_all_is_told_once_and_by_its_name(
    tmp_path: Path, log: ProblemLog, head: bytes, found: str
) -> None:
    for name in ("a.csv", "a.jsonl"):
        path = write(tmp_path / name, head + b"x\n" * 40)
        list((csv_rows if name == "a.csv" else text_files.read_json)(path, log))
    assert [found in problem.found for problem in log.problems] == [True, True]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=30)), st.integers(1, 40))
def test_blocks_of_any_size_give_the_lines_of_the_file(lines: list[str], block: int) -> None:
    content = "".join(line + "\n" for line in ["first", *lines]) + "last without end"
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        path = write(Path(folder) / "a.txt", content)
        found = list(text_files._lines(path, ProblemLog()))
    assert [line for _, line in found] == [line + "\n" for line in ["first", *lines]] + ["last without end"]
    assert [number for number, _ in found] == list(range(1, len(lines) + 3))


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=8), st.integers(1, 30))
def test_what_the_csv_module_writes_is_read_again(rows: list[tuple[str, str]], block: int) -> None:
    rows = [(a.replace("\0", ""), b.replace("\0", "") or "b") for a, b in rows]
    written = io.StringIO(newline="")
    csv.writer(written).writerows([("text", "label"), *rows])
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        log = ProblemLog()
        path = write(Path(folder) / "a.csv", written.getvalue().encode("utf-8", "surrogatepass"))
        found = [(row["text"], row["label"]) for _, row in csv_rows(path, log)]
    assert log.count or found == rows  # a lone surrogate, which is not UTF-8, is a problem
