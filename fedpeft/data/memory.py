"""Examples that a program holds, as rows: lists of dictionaries, data frames, ``datasets.Dataset``, any iterable.

They take the same way as the rows of a file (``fedpeft.data.formats``): the same checks, the same digest, the same
split. Libraries are recognised by what their objects can do; none is imported. Files of a format that another
package reads (docs/plugins.md) take it too.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedpeft.data.opening import opened, plain_suffix
from fedpeft.data.records import ProblemLog, Record
from fedpeft.errors import DataInvalid, foreign
from fedpeft.plugins import Plugin, plugins

__all__ = ["MEMORY", "Rows", "is_memory", "read_by_plugin", "rows_of"]

MEMORY = "memory:"
"""Beginning of ``data.source`` of a run whose data came from a program."""

SAID = "a list of dictionaries, a pandas DataFrame, a datasets.Dataset or an iterable of dictionaries"


@dataclass(frozen=True, slots=True)
class Rows:
    """Data in memory, under a name that problems can cite.

    Args:
        rows: each a mapping from column names to values; read once.
        name: stands for the file's name.
    """

    rows: Iterable[object]
    name: str = MEMORY + "data"

    def __str__(self) -> str:
        return self.name

    def numbered(self, log: ProblemLog) -> Iterator[tuple[int, Record]]:
        """Row numbers from 1 and rows; what is no row is noted in ``log``."""
        for number, row in enumerate(self.rows, 1):
            if isinstance(row, Mapping):
                yield number, {str(name): _plain(value) for name, value in row.items()}
            else:
                log.add(f"{self.name}:{number}", "a dictionary, column name -> value", type(row).__name__)


def is_memory(source: str) -> bool:
    """Whether ``data.source`` stands for data that a program held."""
    return source.startswith(MEMORY)


def rows_of(data: object, name: str = MEMORY + "data") -> Rows:
    """Any kind of data in memory as rows. Class numbers of a ``datasets.Dataset`` become class names.

    Args:
        data: as the module says; of a ``DatasetDict`` the split ``train``.
        name: for messages.

    Raises:
        DataInvalid: it is none of these.

    Example:
        >>> [dict(row) for _, row in rows_of([{"text": "a"}]).numbered(ProblemLog())]
        [{'text': 'a'}]
    """
    known = cast("Any", data)
    if isinstance(data, Mapping):
        if type(data).__module__.partition(".")[0] == "datasets" and "train" in data:
            return rows_of(data["train"], name)
        raise DataInvalid(
            f"Expected {SAID}, found a {type(data).__name__}; write [{{...}}, ...], one for each example."
        )
    if isinstance(data, str | bytes):
        raise DataInvalid(f"Expected {SAID}, found {type(data).__name__}.")
    if hasattr(data, "features") and hasattr(data, "column_names"):  # datasets.Dataset, IterableDataset
        return Rows(_with_class_names(known), name)
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        if hasattr(data, "iter_rows"):  # polars
            return Rows(known.iter_rows(named=True), name)
        columns = [str(column) for column in known.columns]
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise DataInvalid(f"Expected each column once, found {', '.join(twice)} more than once; rename one.")
        return Rows(known.to_dict("records"), name)
    if hasattr(data, "to_pylist"):  # pyarrow.Table
        return Rows(known.to_pylist(), name)
    if isinstance(data, Iterable):
        return Rows(data, name)
    raise DataInvalid(f"Expected {SAID}, found {type(data).__name__}.")


def read_by_plugin(path: Path, log: ProblemLog) -> Iterator[tuple[int, Record]]:
    """Row numbers from 1 and rows; what is no row, and what the plug-in could not read, is noted in ``log``."""
    plugin = plugins("format")[plain_suffix(path).removeprefix(".")]
    try:
        yield from Rows(_read(path, plugin), name=str(path)).numbered(log)
    except DataInvalid as error:
        log.add(str(path), f"a file that {plugin.source} reads", str(error), "Mend the file, or the plug-in.")


def _with_class_names(dataset: Any) -> Iterator[Mapping[str, object]]:
    names = {
        column: tuple(feature.names)
        for column, feature in (dataset.features or {}).items()
        if hasattr(feature, "names") and hasattr(feature, "int2str")
    }
    for row in dataset:
        yield {**row, **{column: _class_name(row[column], classes) for column, classes in names.items()}}


def _class_name(value: object, classes: tuple[str, ...]) -> str | None:
    # -1 is how datasets marks a missing label.
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None


def _plain(value: object) -> object:
    """numpy's numbers and arrays as Python's, and what pandas has for a missing value as None."""
    if value is None or type(value) in (str, int, bool, list, dict):
        return value
    if hasattr(value, "tolist"):  # a scalar or an array
        value = cast("Any", value).tolist()
    if value != value:  # NaN is the one value that is not itself  # noqa: PLR0124
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _read(path: Path, plugin: Plugin) -> Iterator[object]:
    """What the plug-in makes of the file's bytes, decompressed; whatever it raises is said of the file."""
    with foreign(DataInvalid), opened(path) as file:
        yield from cast("Iterable[object]", plugin.entry.load()(file))
