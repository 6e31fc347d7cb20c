"""Which files of a folder are read: test splits never, compressed shards always, and what is left out has a name."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from fedpeft.data import load, load_records
from fedpeft.data.choosing import SPLIT_WORDS
from fedpeft.data.remarks import loaded_remarks
from fedpeft.errors import DataInvalid

HELD = [word for split in ("validation", "test") for word in SPLIT_WORDS[split]]
FORMS = (
    "{}.jsonl",
    "{}/x.jsonl",
    "{}-00000-of-00002.jsonl",
    "my_{}_01.jsonl",
    "{}2.jsonl",
    "{}set.jsonl",
    "{}Data.jsonl",
    "split={}/x.jsonl",
    "my{}.jsonl",
    "{}a.jsonl",
)
"""Of names: the last two as ``myTest`` and CoNLL's ``testa``."""


def jsonl(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": text}) + "\n")
    return path


def read(source: Path | str) -> list[object]:
    return [row["text"] for row in load(str(source)).records]


@pytest.mark.parametrize("word", HELD)
@pytest.mark.parametrize("form", FORMS)
def test_no_file_that_names_another_split_is_trained_on(tmp_path: Path, word: str, form: str) -> None:
    jsonl(tmp_path / "notes.jsonl", "learn")
    held = jsonl(tmp_path / form.format(word.capitalize()), "held out")
    loaded = load(str(tmp_path))
    assert [row["text"] for row in loaded.records] == ["learn"]
    assert [left.path for left in loaded.left_out] == [held]
    assert read(tmp_path / "**" / "*.jsonl") == ["learn"]


@pytest.mark.parametrize("word", SPLIT_WORDS["train"])
def test_where_a_name_says_train_only_such_files_are_read_and_the_others_named(tmp_path: Path, word: str) -> None:
    jsonl(tmp_path / f"bank_{word}.jsonl", "learn")
    other = jsonl(tmp_path / "notes.jsonl", "unmarked")
    loaded = load(str(tmp_path))
    assert [row["text"] for row in loaded.records] == ["learn"]
    assert [left.path for left in loaded.left_out] == [other]


def test_a_word_inside_another_word_marks_no_split(tmp_path: Path) -> None:
    for name in ("contest.jsonl", "devices.jsonl", "strain.jsonl", "latest.jsonl", "evaluated.jsonl", "dataset.jsonl"):
        jsonl(tmp_path / name, name)
    assert len(read(tmp_path)) == 6


def test_the_innermost_name_decides(tmp_path: Path) -> None:
    jsonl(tmp_path / "test" / "train.jsonl", "learn")
    jsonl(tmp_path / "train" / "test.jsonl", "held out")
    assert read(tmp_path) == ["learn"]


def test_a_name_that_says_both_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "train-test.jsonl", "a")
    with pytest.raises(DataInvalid, match="says both"):
        load(str(tmp_path))


def test_compressed_shards_are_read_beside_the_plain_ones(tmp_path: Path) -> None:
    row = b'{"text": "%s"}\n'
    (tmp_path / "a.jsonl").write_bytes(row % b"plain")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(row % b"gz"))
    (tmp_path / "c.jsonl.bz2").write_bytes(bz2.compress(row % b"bz2"))
    (tmp_path / "d.JSONL.XZ").write_bytes(lzma.compress(row % b"xz"))
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(b"text\ncsv\n"))
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(b'[{"text": "array"}]'))
    assert read(tmp_path) == ["plain", "gz", "bz2", "xz", "csv", "array"]


def test_a_zstd_shard_is_read_with_pyarrow(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(b'{"text": "zst"}\n{"text": "two"}\n')
    assert read(tmp_path) == ["zst", "two"]


@pytest.mark.parametrize("cut", [0, 1, 10, 30])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_cut_shard_is_a_problem_of_that_file(tmp_path: Path, suffix: str, cut: int) -> None:
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    content = compress(b"".join(b'{"text": "%d"}\n' % i for i in range(500)))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content[:cut])
    with pytest.raises(DataInvalid, match=rf"a\.jsonl{suffix}"):
        load(str(path))


def test_everything_else_in_a_folder_has_a_name_in_what_is_left_out(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", "a")
    for name in ("notes.txt", "table.xlsx", "more.zip", "old.pkl", "script.py"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("README.md", ".hidden", "LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    left_out = load(str(tmp_path)).left_out
    assert {left.path.name for left in left_out} == {"notes.txt", "table.xlsx", "more.zip", "old.pkl", "script.py"}
    assert "never unpickles" in next(left.why for left in left_out if left.path.suffix == ".pkl")


def test_a_folder_of_nothing_but_other_kinds_names_them(tmp_path: Path) -> None:
    (tmp_path / "table.xlsx").write_bytes(b"x")
    with pytest.raises(DataInvalid, match=r"table\.xlsx"):
        load(str(tmp_path))


def test_columns_that_nobody_asked_for_are_named_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,secret\nhi,x,1\n")
    loaded = load(str(tmp_path / "a.csv"), columns=["text", "label"])
    assert list(loaded.records) == [{"text": "hi", "label": "x"}]
    assert loaded.unused == ("secret",)


@pytest.mark.parametrize("codec", ["zstd", "lz4", "brotli"])
def test_what_arrow_decompresses_is_read(tmp_path: Path, codec: str) -> None:
    pa = pytest.importorskip("pyarrow")
    ending = {"zstd": "zst", "lz4": "lz4", "brotli": "br"}[codec]
    with pa.output_stream(str(tmp_path / f"a.jsonl.{ending}"), compression=codec) as file:
        file.write(b'{"text": "packed"}\n')
    assert read(tmp_path) == ["packed"]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "lzma", "zst", "lz4", "br"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("pyarrow")
    jsonl(tmp_path / f"a.jsonl.{ending}", "plain")
    with pytest.raises(DataInvalid, match=f"a.jsonl.{ending}:1"):
        load(str(tmp_path))


def test_a_plain_file_named_as_a_compressed_one_gets_the_command_to_rename_it(tmp_path: Path) -> None:
    jsonl(tmp_path / "my notes.jsonl.gz", "plain")
    with pytest.raises(DataInvalid, match=r"mv 'my notes\.jsonl\.gz' 'my notes\.jsonl'"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "nothing there"),
        (" ", "nothing there"),
        ("/dev/null", "a pipe or a device"),
        ("~no-such-user/a.csv", "home directory"),
        ("n" * 400, "too long"),
        ("https://example.org/a.csv", "Download it first"),
        ("hub:org/name", "Download it first"),
        ("a\0b", "nothing there"),
    ],
)
def test_a_source_that_cannot_be_a_file_is_refused_as_data(source: str, said: str) -> None:
    with pytest.raises(DataInvalid, match=said):
        load(source)


@pytest.mark.parametrize(("name", "remedy"), [("d.tar.gz", "Unpack"), ("d.zip", "Unpack"), ("d.gz", "rows.jsonl.gz")])
def test_an_archive_is_refused_with_what_to_do(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataInvalid, match=remedy):
        load(str(tmp_path / name))


def test_rows_of_other_splits_are_not_trained_on_and_are_counted(tmp_path: Path) -> None:
    rows = [("a", "train"), ("b", "test"), ("c", ""), ("d", "Validation"), ("e", "test")]
    file = tmp_path / "d.csv"
    file.write_text("text,split\n" + "".join(f"{text},{split}\n" for text, split in rows))
    loaded = load(str(file), columns=("text",))
    assert [row["text"] for row in loaded.records] == ["a", "c"]
    assert loaded.records.columns() == ("text",)
    assert loaded.unused == ("split",)
    assert "2 of the test split and 1 of the validation split" in loaded.remarks[0]
    assert len(load(str(file), columns=("text", "split")).records) == 5, "asked for, it is a column as any other"
    assert len(load_records(str(file))) == 5, "for measuring, every row counts"


def test_a_table_of_nothing_but_test_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,split\na,test\nb,test\n")
    with pytest.raises(DataInvalid, match="only 2 of the test split"):
        load(str(tmp_path / "d.csv"))


def test_one_table_in_two_formats_is_remarked_on(tmp_path: Path) -> None:
    for name in ("notes.jsonl", "notes.jsonl.gz", "other.jsonl"):
        row = b'{"text": "a"}\n'
        (tmp_path / name).write_bytes(gzip.compress(row) if name.endswith("gz") else row)
    (remark,) = loaded_remarks(load(str(tmp_path)), {})
    assert "notes.jsonl and" in remark
    assert "other.jsonl" not in remark


def test_a_column_that_the_map_replaces_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,note\na,b\n")
    names = {"text": "note"}
    loaded = load(str(tmp_path / "d.csv"), names)
    assert [row["text"] for row in loaded.records] == ["b"]
    assert loaded_remarks(loaded, names) == ["columns that are not used: text (note is read in its place)"]
