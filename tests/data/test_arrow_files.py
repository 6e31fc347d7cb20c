import json
import sys
from pathlib import Path

import pytest

from fedpeft.data import arrow_files, load_records
from fedpeft.data.records import ProblemLog
from fedpeft.errors import DataInvalid, ResourceMissing

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(7)]
CLASS_NOTE = json.dumps({"info": {"features": {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
}}}).encode()  # fmt: skip


def saved(folder: Path, *files: list[dict[str, object]], metadata: dict[bytes, bytes] | None = None) -> Path:
    """A folder as ``Dataset.save_to_disk`` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(files):05}.arrow" for i in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_parquet_rows_come_in_order_with_their_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=3)
    records = load_records(str(tmp_path / "a.parquet"))
    assert list(records) == ROWS
    assert records.origins[6] == f"{tmp_path / 'a.parquet'}:7"


def test_class_indices_become_the_names_in_the_schema(tmp_path: Path) -> None:
    rows = [*ROWS[:2], {"text": "unlabelled", "label": -1}]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({b"huggingface": CLASS_NOTE})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["label"] for row in load_records(str(tmp_path / "a.parquet"))] == ["bad", "good", None]


@pytest.mark.parametrize("note", [b"not json", b"[]", b'{"info": null}', b'{"info": {"features": 3}}'])
def test_a_schema_note_of_unknown_form_is_ignored(tmp_path: Path, note: bytes) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS).replace_schema_metadata({b"huggingface": note}), tmp_path / "a.parquet")
    assert list(load_records(str(tmp_path / "a.parquet"))) == ROWS


def test_messages_survive_parquet(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(load_records(str(tmp_path / "a.parquet"))) == rows


def test_a_saved_dataset_is_read_through_all_its_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "ds", ROWS[:4], ROWS[4:], metadata={b"huggingface": CLASS_NOTE})
    records = load_records(str(folder))
    assert [row["text"] for row in records] == [row["text"] for row in ROWS]
    assert records[1]["label"] == "good"
    assert records.origins[6].endswith(":7")


def test_of_a_saved_dataset_dict_the_train_split_is_taken(tmp_path: Path) -> None:
    saved(tmp_path / "ds" / "train", ROWS[:4])
    saved(tmp_path / "ds" / "test", ROWS[4:])
    (tmp_path / "ds" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(load_records(str(tmp_path / "ds"))) == 4
    assert len(load_records(str(tmp_path / "ds" / "test"))) == 3


def test_a_dataset_dict_without_train_asks_which_split(tmp_path: Path) -> None:
    saved(tmp_path / "ds" / "a", ROWS[:4])
    saved(tmp_path / "ds" / "b", ROWS[4:])
    (tmp_path / "ds" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataInvalid, match="split named train, found a, b"):
        load_records(str(tmp_path / "ds"))


def test_what_the_datasets_package_saves_is_what_we_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    whole = datasets.Dataset.from_list(ROWS, features=features)
    whole.select([5, 3, 1]).save_to_disk(str(tmp_path / "ds"), num_shards=2)
    assert [(row["text"], row["label"]) for row in load_records(str(tmp_path / "ds"))] == [
        ("text 5", "good"),
        ("text 3", "good"),
        ("text 1", "good"),
    ]
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(str(tmp_path / "dict"))
    assert len(load_records(str(tmp_path / "dict"))) == 7


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", b'{"text": "jsonl"}'])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataInvalid, match=r"a\.parquet"):
        load_records(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("state", ["not json", "{}", '{"_data_files": 3}', '{"_data_files": [{"filename": "../x"}]}'])
def test_a_broken_state_of_a_saved_dataset_is_named(tmp_path: Path, state: str) -> None:
    saved(tmp_path / "ds", ROWS)
    (tmp_path / "ds" / "state.json").write_text(state)
    with pytest.raises(DataInvalid, match=r"state\.json"):
        load_records(str(tmp_path / "ds"))


def test_a_cut_arrow_file_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "ds", ROWS)
    arrow = next(folder.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:150])
    with pytest.raises(DataInvalid, match=r"\.arrow"):
        load_records(str(folder))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResourceMissing, match=r"fedpeft\[demo\]") as caught:
        list(arrow_files.read_parquet(tmp_path / "a.parquet", ProblemLog()))
    assert caught.value.exit_code == 8


def test_a_column_that_nobody_asked_for_may_hold_what_python_cannot(tmp_path: Path) -> None:
    from fedpeft.data import load

    table = pa.table({"text": ["a", "b"], "when": pa.array([10**15, 1], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "a.parquet")
    loaded = load(str(tmp_path / "a.parquet"), columns=["text"])
    assert [row["text"] for row in loaded.records] == ["a", "b"]
    assert loaded.unused == ("when",)
    with pytest.raises(DataInvalid, match="column 'when'"):
        load(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_two_columns_of_one_name_are_refused_whatever_the_format(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
    with pytest.raises(DataInvalid, match="distinct column names, found 'text' twice"):
        load_records(str(tmp_path / name))


def test_text_that_is_not_utf8_is_a_problem_of_its_column(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    table = pa.table({"text": broken})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    with pytest.raises(DataInvalid, match="column 'text'"):
        load_records(str(tmp_path / "a.arrow"))


def test_without_a_column_of_ours_the_columns_are_named(tmp_path: Path) -> None:
    from fedpeft.data import detect, load

    pq.write_table(pa.table({"note": ["a"], "dx": ["b"]}), tmp_path / "a.parquet")
    loaded = load(str(tmp_path / "a.parquet"), columns=["text", "label"])
    assert loaded.unused == ("note", "dx")
    with pytest.raises(DataInvalid, match="found dx, note"):
        detect(loaded.records, unread=loaded.unused)
