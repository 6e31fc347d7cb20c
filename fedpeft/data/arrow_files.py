"""Parquet and Arrow files and Hugging Face ``save_to_disk`` folders, read with pyarrow alone.

A saved data set is Arrow streams beside a ``state.json`` that lists them: no code in it is needed, so none
is run, and the ``datasets`` package is not needed either. Class indices become class names where the
schema carries them (``ClassLabel``). Columns that nobody asked for are not read: what is wrong in them is no
problem.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft import bounded_json
from fedpeft.data.opening import mislabelled, plain_suffix
from fedpeft.data.records import BATCH_ROWS, ProblemLog
from fedpeft.errors import DataInvalid, ResourceMissing, foreign

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ColumnChoice",
    "is_saved_dataset",
    "read_arrow",
    "read_parquet",
    "read_saved_dataset",
    "saved_splits",
]

Row = tuple[int, Mapping[str, object]]
STATE = bounded_json.JsonLimits(max_bytes=16 * 2**20)
SCHEMA_NOTE = bounded_json.JsonLimits(max_bytes=16 * 2**20, max_depth=64)


@dataclass(slots=True)
class ColumnChoice:
    """Which columns are read, and which there are.

    Args:
        wanted: names to read; None: all.
        seen: every column of the file, in order; filled by the reader.
    """

    wanted: frozenset[str] | None = None
    seen: dict[str, None] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are to be read."""
        self.seen.update(dict.fromkeys(names))
        return [name for name in names if self.wanted is None or name in self.wanted]


def read_parquet(path: Path, log: ProblemLog, choice: ColumnChoice | None = None) -> Iterator[Row]:
    """The rows of one Parquet file, numbered from 1, a few thousand at a time.

    Raises:
        ResourceMissing: pyarrow is not installed.
    """
    _require_pyarrow(path)
    import pyarrow.parquet as pq

    with _noted(path, "a Parquet file", log), pq.ParquetFile(path) as file:
        columns = _readable(path, file.schema_arrow, choice or ColumnChoice(), log)
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
        yield from _rows(path, file.schema_arrow, columns, batches, log)


def read_arrow(path: Path, log: ProblemLog, choice: ColumnChoice | None = None) -> Iterator[Row]:
    """The rows of one Arrow (or Feather) file or stream, numbered from 1.

    Raises:
        ResourceMissing: pyarrow is not installed.
    """
    _require_pyarrow(path)
    import pyarrow as pa

    with _noted(path, "an Arrow file", log), pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            file = pa.ipc.open_file(source)
            schema, batches = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            schema, batches = stream.schema, iter(stream)
        columns = _readable(path, schema, choice or ColumnChoice(), log)
        yield from _rows(path, schema, columns, batches, log)


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_splits(folder: Path) -> tuple[str, ...]:
    """The splits of a saved ``DatasetDict``; empty for a single data set."""
    if not (folder / "dataset_dict.json").is_file():
        return ()
    return tuple(sorted(part.name for part in folder.iterdir() if (part / "state.json").is_file()))


def read_saved_dataset(folder: Path, log: ProblemLog, choice: ColumnChoice | None = None) -> Iterator[Row]:
    """The rows of one ``Dataset.save_to_disk`` folder, numbered from 1 through its files.

    Raises:
        ResourceMissing: pyarrow is not installed.
    """
    _require_pyarrow(folder)
    try:
        state: Any = bounded_json.loads((folder / "state.json").read_bytes(), STATE)
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.add(str(folder / "state.json"), "the state of a saved data set", repr(error), "Save the data set again.")
        return
    if state.get("_indices_files") or any(Path(name).name != name for name in names):
        log.add(str(folder / "state.json"), "Arrow files inside the folder", ", ".join(names), "Save it again.")
        return
    number = 0
    for name in names:
        for _, row in read_arrow(folder / name, log, choice):
            number += 1
            yield number, row


@contextmanager
def _noted(path: Path, expected: str, log: ProblemLog) -> Iterator[None]:
    """Whatever pyarrow raises on a file is a problem of that file."""
    try:
        with foreign(DataInvalid):
            yield
    except DataInvalid as error:
        sort, remedy = mislabelled(path)
        if plain_suffix(path) != path.suffix.lower():
            sort, remedy = "one that is compressed as a whole", "Decompress it: these files are compressed inside."
        log.add(str(path), expected, sort or str(error), remedy or "Fetch it or write it again.")


def _readable(path: Path, schema: "pa.Schema", choice: ColumnChoice, log: ProblemLog) -> list[str] | None:
    """The columns to read; None after noting a name that stands twice: one of the two would be lost."""
    columns = choice.of(schema.names)
    twice = sorted({name for name in columns if schema.names.count(name) > 1})
    if twice:
        found = f"{', '.join(map(repr, twice))} twice"
        log.add(str(path), "distinct column names", found, "Rename or remove one.")
        return None
    return columns


def _rows(
    path: Path, schema: "pa.Schema", columns: list[str] | None, batches: "Iterator[pa.RecordBatch]", log: ProblemLog
) -> Iterator[Row]:
    """Rows as Python values, class indices as names."""
    names = _class_names(schema)
    number = 0
    broken: set[str] = set()
    if columns is None:
        return
    for batch in batches:
        values: dict[str, list[object]] = {}
        for column in columns:
            if column in broken:
                continue
            try:
                with foreign(DataInvalid):
                    values[column] = batch.column(column).to_pylist()
            except DataInvalid as error:  # a date beyond Python's, text that is not UTF-8
                broken.add(column)
                where = f"{path}: column {column!r} of rows {number + 1} to {number + batch.num_rows}"
                log.add(where, "values that Python can hold", str(error), "Correct the column or leave it out.")
        for column, classes in names.items():
            if column in values:
                values[column] = [_named(value, classes) for value in values[column]]
        rows = zip(*values.values(), strict=True) if values else ((),) * batch.num_rows
        for row in rows:
            number += 1
            yield number, dict(zip(values, row, strict=True))


def _named(value: object, classes: tuple[str, ...]) -> str | None:
    # -1 is how datasets marks a missing label.
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None


def _class_names(schema: "pa.Schema") -> dict[str, tuple[str, ...]]:
    """Column -> class names, from the schema note that ``datasets`` leaves in Arrow and Parquet files."""
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        content: Any = bounded_json.loads(note, SCHEMA_NOTE) if note else {"info": {"features": {}}}
        return {
            column: tuple(feature["names"])
            for column, feature in content["info"]["features"].items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # a note in an unknown form: the indices then stand for themselves


def _require_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ResourceMissing(
            f"Expected the package pyarrow to read {path}, found none; pip install 'fedpeft[demo]' or convert to JSONL."
        ) from error
