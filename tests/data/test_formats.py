import json
from pathlib import Path

import pytest

from fedpeft.data import load_records
from fedpeft.errors import DataInvalid

LINES = '{"text": "a"}\n{"text": "b"}\n'


def jsonl(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts(source: Path | str) -> list[object]:
    return [row["text"] for row in load_records(str(source))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("A.JSONL", LINES),
        ("a.json", '[{"text": "a"}, {"text": "b"}]'),
        ("a.csv", "text\na\nb\n"),
        ("a.tsv", "text\tlabel\na\tx\nb\ty\n"),
    ],
)
def test_each_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert texts(tmp_path / name) == ["a", "b"]


def test_a_pattern_reads_its_files_in_name_order(tmp_path: Path) -> None:
    jsonl(tmp_path / "part-2.jsonl", "c")
    jsonl(tmp_path / "part-1.jsonl", "a", "b")
    jsonl(tmp_path / "other.jsonl", "no")
    records = load_records(str(tmp_path / "part-*.jsonl"))
    assert [row["text"] for row in records] == ["a", "b", "c"]
    assert records.origins[-1] == f"{tmp_path / 'part-2.jsonl'}:1"


def test_a_relative_pattern_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "d" / "x.jsonl", "a")
    monkeypatch.chdir(tmp_path)
    assert texts("*/x.jsonl") == ["a"]


def test_a_folder_reads_every_data_file_and_nothing_else(tmp_path: Path) -> None:
    jsonl(tmp_path / "b" / "x.jsonl", "b")
    (tmp_path / "a.csv").write_text("text\na\n")
    jsonl(tmp_path / ".cache" / "x.jsonl", "hidden")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("# data")
    assert texts(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"),
        ("train/x.jsonl", "dev/x.jsonl"),
    ],
)
def test_where_names_mark_a_training_split_only_that_is_read(tmp_path: Path, names: tuple[str, str]) -> None:
    jsonl(tmp_path / names[0], "learn")
    jsonl(tmp_path / names[1], "test")
    assert texts(tmp_path) == ["learn"]


def test_a_folder_with_nothing_but_a_test_split_is_refused_unless_its_file_is_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", "a")
    with pytest.raises(DataInvalid, match="Name the file itself"):
        load_records(str(tmp_path))
    assert texts(tmp_path / "test.jsonl") == ["a"]
    assert texts(tmp_path / "test*.jsonl") == ["a"]


def test_no_code_in_a_data_folder_runs(tmp_path: Path) -> None:
    jsonl(tmp_path / "x.jsonl", "a")
    bomb = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in (f"{tmp_path.name}.py", "__init__.py", "conftest.py", "dataset.py"):
        (tmp_path / name).write_text(bomb)
    assert texts(tmp_path) == ["a"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("empty.jsonl", "", "none"),
        ("blank.jsonl", "\n\n", "none"),
        ("header.csv", "text,label\n", "none"),
        ("empty.csv", "", "none"),
        ("empty.json", "", "none"),
        ("nothing.json", "[]", "none"),
        ("notes.txt", "hello", "'.txt'"),
        ("data.py", "print(1)", "'.py'"),
    ],
)
def test_a_file_with_nothing_to_read_is_refused(tmp_path: Path, name: str, content: str, found: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataInvalid) as caught:
        load_records(str(tmp_path / name))
    (problem,) = caught.value.problems
    assert problem.where == str(tmp_path / name)
    assert problem.found == found


@pytest.mark.parametrize("name", ["absent.jsonl", "absent-*.jsonl", "absent/"])
def test_a_source_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataInvalid, match="nothing there"):
        load_records(str(tmp_path / name))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="none of these"):
        load_records(str(tmp_path))


def test_problems_of_all_files_come_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nbroken\n')
    (tmp_path / "b.csv").write_text("text,label\na\n")
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(DataInvalid) as caught:
        load_records(str(tmp_path))
    assert [problem.where for problem in caught.value.problems] == [
        f"{tmp_path / 'a.jsonl'}:2",
        f"{tmp_path / 'b.csv'}:2",
        f"{tmp_path / 'c.jsonl'}",
    ]


def test_a_map_adds_our_names_and_keeps_theirs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("note,dx,text\nhello,flu,old\n")
    (row,) = load_records(str(tmp_path / "a.csv"), {"text": "note", "label": "dx"})
    assert row == {"note": "hello", "dx": "flu", "text": "hello", "label": "flu"}


def test_a_map_may_swap_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\nq,a\n")
    (row,) = load_records(str(tmp_path / "a.csv"), {"prompt": "completion", "completion": "prompt"})
    assert row == {"prompt": "a", "completion": "q"}


def test_an_unknown_map_key_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="Did you mean label") as caught:
        load_records(str(tmp_path / "absent.csv"), {"lable": "dx", "colour": "c"})
    assert {problem.where for problem in caught.value.problems} == {"map.lable", "map.colour"}


def test_a_mapped_column_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("note,diagnosis\na,b\n")
    with pytest.raises(DataInvalid, match="Did you mean diagnosis"):
        load_records(str(tmp_path / "a.csv"), {"label": "diagnose"})


def test_an_unknown_bundled_source_is_refused() -> None:
    with pytest.raises(DataInvalid, match="builtin:airline-tweets"):
        load_records("builtin:airline-tweet")
