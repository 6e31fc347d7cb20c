"""Which files of a folder are read: test splits never, compressed shards always, and what is left out has a name."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from fedpeft.data import load
from fedpeft.data.choosing import SPLIT_WORDS
from fedpeft.errors import DataInvalid

HELD = [word for split in ("validation", "test") for word in SPLIT_WORDS[split]]


def jsonl(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": text}) + "\n")
    return path


def read(source: Path | str) -> list[object]:
    return [row["text"] for row in load(str(source)).records]


@pytest.mark.parametrize("word", HELD)
@pytest.mark.parametrize("form", ["{}.jsonl", "{}/x.jsonl", "{}-00000-of-00002.jsonl", "my_{}_01.jsonl", "{}2.jsonl"])
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
    for name in ("contest.jsonl", "devices.jsonl", "strain.jsonl", "latest.jsonl", "evaluated.jsonl"):
        jsonl(tmp_path / name, name)
    assert len(read(tmp_path)) == 5


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
