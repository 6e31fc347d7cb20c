"""Parquet files and Hugging Face ``save_to_disk`` folders, read with pyarrow alone.

A saved data set is Arrow streams beside a ``state.json`` that lists them: no code in it is needed, so none
is run, and the ``datasets`` package is not needed either. Class indices become class names where the
schema carries them (``ClassLabel``).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.data.records import ProblemLog
from fedpeft.errors import ResourceMissing

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["is_saved_dataset", "read_parquet", "read_saved_dataset", "saved_splits"]

Row = tuple[int, Mapping[str, object]]


def read_parquet(path: Path, log: ProblemLog) -> Iterator[Row]:
    """The rows of one Parquet file, numbered from 1, a row group at a time.

    Raises:
        ResourceMissing: pyarrow is not installed.
    """
    _require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _rows(file.schema_arrow, file.iter_batches())
    except (pa.ArrowException, OSError) as error:
        log.add(str(path), "a Parquet file", _first_line(error))


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_splits(folder: Path) -> tuple[str, ...]:
    """The splits of a saved ``DatasetDict``; empty for a single data set."""
    if not (folder / "dataset_dict.json").is_file():
        return ()
    return tuple(sorted(part.name for part in folder.iterdir() if (part / "state.json").is_file()))


def read_saved_dataset(folder: Path, log: ProblemLog) -> Iterator[Row]:
    """The rows of one ``Dataset.save_to_disk`` folder, numbered from 1 through its files.

    Raises:
        ResourceMissing: pyarrow is not installed.
    """
    _require_pyarrow(folder)
    import pyarrow as pa

    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.add(str(folder / "state.json"), "the state of a saved data set", repr(error), "Save the data set again.")
        return
    if state.get("_indices_files") or any(Path(name).name != name for name in names):
        log.add(str(folder / "state.json"), "Arrow files inside the folder", ", ".join(names), "Save it again.")
        return
    number = 0
    for name in names:
        try:
            with pa.memory_map(str(folder / name)) as source, pa.ipc.open_stream(source) as stream:
                for _, row in _rows(stream.schema, stream):
                    number += 1
                    yield number, row
        except (pa.ArrowException, OSError) as error:
            log.add(str(folder / name), "an Arrow stream", _first_line(error))


def _rows(schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]") -> Iterator[Row]:
    """Rows as Python values, class indices as names."""
    names = _class_names(schema)
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            for column, classes in names.items():
                value = row[column]
                # -1 is how datasets marks a missing label.
                row[column] = classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None
            yield number, row


def _class_names(schema: "pa.Schema") -> dict[str, tuple[str, ...]]:
    """Column -> class names, from the schema note that ``datasets`` leaves in Arrow and Parquet files."""
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(note)["info"]["features"] if note else {}
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # a note in an unknown form: the indices then stand for themselves


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ResourceMissing(
            f"Expected the package pyarrow to read {path}, found none; pip install 'fedpeft[demo]' or convert to JSONL."
        ) from error
