"""Files of a format that another package reads (docs/plugins.md): its rows take the way of rows in memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from fedpeft.data.memory import Rows
from fedpeft.data.opening import opened, plain_suffix
from fedpeft.data.records import ProblemLog, Record
from fedpeft.errors import DataInvalid, foreign
from fedpeft.plugins import Plugin, plugins

__all__ = ["read_by_plugin"]


def read_by_plugin(path: Path, log: ProblemLog) -> Iterator[tuple[int, Record]]:
    """Row numbers from 1 and rows; what is no row, and what the plug-in could not read, is noted in ``log``."""
    plugin = plugins("format")[plain_suffix(path).removeprefix(".")]
    try:
        yield from Rows(_rows(path, plugin), name=str(path)).numbered(log)
    except DataInvalid as error:
        log.add(str(path), f"a file that {plugin.source} reads", str(error), "Mend the file, or the plug-in.")


def _rows(path: Path, plugin: Plugin) -> Iterator[object]:
    """What the plug-in makes of the file's bytes, decompressed; whatever it raises is said of the file."""
    with foreign(DataInvalid), opened(path) as file:
        yield from cast("Iterable[object]", plugin.entry.load()(file))
