"""``load``: whatever the user names as ``--data`` becomes ``Records``, and whatever is not used has a name.

JSONL, JSON, CSV, TSV (also compressed), Parquet, Arrow, a glob of these, a folder of these, a Hugging Face
``save_to_disk`` folder, or a bundled source (``builtin:...``). Only data files are opened: a loading script in the
folder is not looked at. Every unreadable row is reported with file and line, all at once.
"""

import difflib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from fedpeft.data import arrow_files, builtin, text_files
from fedpeft.data.arrow_files import ColumnChoice
from fedpeft.data.choosing import KINDS, OWN_KINDS, LeftOut, choose, split_of_word
from fedpeft.data.delimited import csv_batches
from fedpeft.data.memory import Rows, is_memory, read_by_plugin
from fedpeft.data.opening import plain_suffix
from fedpeft.data.packed import MEMORY_BYTES, LineNumbers, PackedColumn, PackedOrigins, PackedRows, Pages
from fedpeft.data.records import BATCH_ROWS, MISSING, Batch, ProblemLog, Record, Records
from fedpeft.files import expanded
from fedpeft.tasks import KNOWN_COLUMNS
from fedpeft.tasks.conventions import aliases_in

__all__ = ["Loaded", "load", "load_noting", "load_records", "located"]

Row = tuple[int, Record]
Reader = Callable[[Path, ProblemLog, ColumnChoice], Iterator[Batch]]
Progress = Callable[[int], None]
"""Told the number of rows read so far, now and then."""


FROM_PYTHON = "Its data came from Python: fedpeft.simulate(resume=RUN, data=ROWS)."
SPLIT = "split"
"""A column that says of each row which split it is of."""


def _json_batches(path: Path, log: ProblemLog, choice: ColumnChoice) -> Iterator[Batch]:
    return _batches(text_files.read_json(path, log), choice)


def _others_batches(path: Path, log: ProblemLog, choice: ColumnChoice) -> Iterator[Batch]:
    return _batches(read_by_plugin(path, log), choice)


READERS: Mapping[str, Reader] = {
    ".jsonl": _json_batches,
    ".ndjson": _json_batches,
    ".json": _json_batches,
    ".csv": lambda path, log, _: csv_batches(path, log),
    ".tsv": lambda path, log, _: csv_batches(path, log, delimiter="\t"),
    ".parquet": lambda path, log, choice: _batches(arrow_files.read_parquet(path, log, choice), choice),
    ".arrow": lambda path, log, choice: _batches(arrow_files.read_arrow(path, log, choice), choice),
    ".feather": lambda path, log, choice: _batches(arrow_files.read_arrow(path, log, choice), choice),
    **{kind: _others_batches for kind in KINDS if kind not in OWN_KINDS},
    "": lambda path, log, choice: _batches(arrow_files.read_saved_dataset(path, log, choice), choice),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was read, and what was not.

    Args:
        records: the rows, with the columns that were asked for.
        files: those that were read.
        left_out: files beside them.
        unused: columns that are in the files and not in the records.
        remarks: what else was left out, a sentence each.
        aliases: our column name -> theirs, of columns that are ours under a well-known name; only without a column map.
        replaced: our column names that the files have themselves and the column map gives to others.
    """

    records: Records
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    unused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()


def load_records(source: str | Rows, column_map: Mapping[str, str] | None = None) -> Records:
    """As ``load`` with every column and every row, whatever split it is of; the records alone.

    Raises:
        DataInvalid: as ``load``.
        ResourceMissing: as ``load``.
    """
    log = ProblemLog()
    loaded = load_noting(source, column_map, log, every_split=True)
    log.raise_if_any(f"data in {source}")
    return loaded.records


def load(
    source: str | Rows,
    column_map: Mapping[str, str] | None = None,
    *,
    columns: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Read a data set completely.

    In a folder, files are taken in name order; where names tell splits apart (``train-...``, ``test-...``),
    only those of the training split are taken; of a saved ``DatasetDict``, ``train``. Point at the file or
    sub-folder for another. Rows whose column ``split`` says test or validation are left out, unless that column is
    asked for.

    Args:
        source: a path, a glob pattern, ``builtin:NAME``, or rows that a program holds.
        column_map: our column name -> theirs; the named column is added under our name.
        columns: those to read beside the mapped ones; None: all.
        progress: told how many rows there are so far.

    Returns:
        At least one record, in file order.

    Raises:
        DataInvalid: nothing to read, or any row, column or file that is not as it should be; all at once.
        ResourceMissing: pyarrow or the package of a bundled source is not installed.
    """
    log = ProblemLog()
    loaded = load_noting(source, column_map, log, columns=columns, progress=progress)
    log.raise_if_any(f"data in {source}")
    return loaded


def load_noting(
    source: str | Rows,
    column_map: Mapping[str, str] | None,
    log: ProblemLog,
    *,
    columns: Iterable[str] | None = None,
    progress: Progress | None = None,
    every_split: bool = False,
) -> Loaded:
    """As ``load``, but what could not be read is noted in ``log`` and left out.

    Args:
        every_split: whether rows of test and validation splits are taken too.

    Raises:
        DataInvalid: the column map is wrong.
    """
    names = dict(column_map or {})
    for ours in names.keys() - set(KNOWN_COLUMNS):
        near = difflib.get_close_matches(ours, KNOWN_COLUMNS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Write OURS=THEIRS, e.g. text=note."
        log.add(f"map.{ours}", f"one of {', '.join(KNOWN_COLUMNS)}", repr(ours), hint)
    log.raise_if_any("column map")
    wanted = None if columns is None else frozenset(columns) | frozenset(names.values())
    if isinstance(source, str) and is_memory(source):
        log.add("data", "the rows that the run was started with", f"only their name, {source}", FROM_PYTHON)
        log.raise_if_any("data")
    if isinstance(source, str) and source.startswith(builtin.PREFIX):
        loaded = _bundled(source, wanted)
    else:
        by_split = not every_split and (wanted is None or SPLIT not in wanted)
        chosen = wanted | {SPLIT} if by_split and wanted is not None else wanted
        loaded = _read(source, chosen, log, progress or (lambda _rows: None))
        if by_split:
            loaded = _of_training(loaded, log, keep=wanted is None)
    there = (*loaded.records.columns(), *loaded.unused)
    aliases = {} if names.keys() - {"person"} else aliases_in(loaded.records.columns())
    remarks = [*loaded.remarks, *_aliases_told(aliases)]
    loaded, names = replace(loaded, aliases=aliases, remarks=tuple(remarks)), {**aliases, **names}
    replaced = tuple(ours for ours, theirs in names.items() if ours in there and ours != theirs)
    return replace(loaded, records=_mapped(loaded, names, log), replaced=replaced)


def _aliases_told(aliases: Mapping[str, str]) -> list[str]:
    read = ", ".join(f"{theirs} as {ours}" for ours, theirs in aliases.items())
    return [f"columns that are read under our names: {read}; another reading: --map"] if aliases else []


def located(source: str) -> str:
    """``source`` independent of the working directory: bundled sources as they are, paths and patterns absolute."""
    return source if source.startswith(builtin.PREFIX) or is_memory(source) else str(expanded(source).absolute())


def _bundled(source: str, wanted: frozenset[str] | None) -> Loaded:
    records = builtin.load(source)
    there = records.columns()
    return Loaded(
        records=records,
        files=(source,),
        unused=tuple(name for name in there if wanted is not None and name not in wanted),
    )


def _batches(rows: Iterator[Row], choice: ColumnChoice) -> Iterator[Batch]:
    """Rows by column, a few thousand at a time; columns that nobody asked for are noted and left out."""
    while some := list(islice(rows, BATCH_ROWS)):
        names = choice.of(dict.fromkeys(chain.from_iterable(row for _, row in some)))
        columns = {name: [row.get(name, MISSING) for _, row in some] for name in names}
        yield Batch(lines=[number for number, _ in some], columns=columns)


@dataclass(slots=True)
class _Collector:
    """Rows of all files as they come, packed column by column."""

    pages: Pages = field(default_factory=lambda: Pages(MEMORY_BYTES))
    columns: dict[str, PackedColumn] = field(default_factory=dict)
    lines: LineNumbers = field(default_factory=LineNumbers)

    def add(self, batch: Batch, choice: ColumnChoice) -> None:
        done, rows = len(self.lines), len(batch.lines)
        for name in choice.of(batch.columns):
            if name not in self.columns:
                self.columns[name] = column = PackedColumn(self.pages)
                for start in range(0, done, BATCH_ROWS):
                    column.extend([MISSING] * min(BATCH_ROWS, done - start))
        for name, column in self.columns.items():
            column.extend(batch.columns.get(name) or [MISSING] * rows)
        self.lines.extend(batch.lines)


def _read(source: str | Rows, wanted: frozenset[str] | None, log: ProblemLog, progress: Progress) -> Loaded:
    """All rows of all files of ``source``."""
    choice = ColumnChoice(wanted)
    parts, left_out = _parts(source, choice, log)
    collector = _Collector()
    files: list[tuple[str, int]] = []
    for name, batches in parts:
        before = len(collector.lines), log.count
        for batch in batches:
            collector.add(batch, choice)
            progress(len(collector.lines))
        if (len(collector.lines), log.count) == before:
            log.add(name, "at least one example", "none", "Remove what is empty or fill it.")
        files.append((name, before[0]))
    every = range(len(collector.lines))
    return Loaded(
        records=Records(PackedRows(collector.columns, every), PackedOrigins(files, collector.lines, every)),
        files=tuple(name for name, _ in files),
        left_out=tuple(left_out),
        unused=tuple(name for name in choice.seen if name not in collector.columns),
    )


def _parts(
    source: str | Rows, choice: ColumnChoice, log: ProblemLog
) -> tuple[list[tuple[str, Iterator[Batch]]], list[LeftOut]]:
    """Names and rows of all files of a source, each read as it is looked at; and the files that are left out."""
    if isinstance(source, Rows):
        return [(source.name, _batches(source.numbered(log), choice))], []
    paths, left_out = choose(source, log)
    readers = ((path, READERS["" if path.is_dir() else plain_suffix(path)]) for path in paths)
    return [(str(path), reader(path, log, choice)) for path, reader in readers], left_out


def _of_training(loaded: Loaded, log: ProblemLog, *, keep: bool) -> Loaded:
    """Without the rows whose column ``split`` names another split than training; each row is decided by itself.

    Args:
        keep: whether the column stays.
    """
    rows = loaded.records.rows
    if SPLIT not in loaded.records.columns() or not isinstance(rows, PackedRows):
        return loaded
    other: Counter[str] = Counter()
    train = array("Q")
    for index, value in enumerate(rows.values(SPLIT)):
        split = split_of_word(value.strip().lower()) if isinstance(value, str) else ""
        if split in ("", "train"):
            train.append(index)
        else:
            other[split] += 1
    records = loaded.records if keep else Records(rows.without(SPLIT), loaded.records.origins)
    unused = loaded.unused if keep else (*loaded.unused, SPLIT)
    if not other:
        return replace(loaded, records=records, unused=unused)
    said = " and ".join(f"{count:,} of the {split} split" for split, count in sorted(other.items()))
    if not train:
        log.add(loaded.files[0], "rows to train on", f"only {said}, by the column split", "Rename the column split.")
    remark = f"rows that are not read, by the column split: {said}"
    return replace(loaded, records=records.select(train), unused=unused, remarks=(remark,))


def _mapped(loaded: Loaded, names: Mapping[str, str], log: ProblemLog) -> Records:
    """The records with our column names added."""
    records = loaded.records
    if not names or not records:
        return records
    there = records.columns()
    absent = [theirs for theirs in names.values() if theirs not in there]
    for theirs in absent:
        known = (*there, *loaded.unused)
        near = difflib.get_close_matches(theirs, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        log.add(f"map: column {theirs!r}", f"one of {', '.join(known)}", "no such column", hint)
    if absent:
        return records
    if isinstance(records.rows, PackedRows):
        return Records(records.rows.under(names), records.origins)
    rows = tuple({**row, **{ours: row.get(theirs) for ours, theirs in names.items()}} for row in records.rows)
    return Records(rows, records.origins)
