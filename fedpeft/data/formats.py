"""``load_records``: whatever the user names as ``--data`` becomes ``Records``.

JSONL, JSON, CSV, TSV, Parquet, a glob of these, a folder of these, a Hugging Face ``save_to_disk`` folder,
or a bundled source (``builtin:...``). Only data files are opened: a loading script in the folder is not
looked at. Every unreadable row is reported with file and line, all at once.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fedpeft.data import arrow_files, builtin, text_files
from fedpeft.data.records import ProblemLog, Record, Records
from fedpeft.data.tasks import KNOWN_COLUMNS

__all__ = ["load_records"]

Row = tuple[int, Record]
Reader = Callable[[Path, ProblemLog], Iterator[Row]]

READERS: Mapping[str, Reader] = {
    ".jsonl": text_files.read_jsonl,
    ".ndjson": text_files.read_jsonl,
    ".json": text_files.read_json,
    ".csv": text_files.read_csv,
    ".tsv": lambda path, log: text_files.read_csv(path, log, delimiter="\t"),
    ".parquet": arrow_files.read_parquet,
}
SUFFIXES = ", ".join(READERS)
HELD_BACK = ("test", "valid", "validation", "val", "dev", "eval")
METADATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")


def load_records(source: str, column_map: Mapping[str, str] | None = None) -> Records:
    """Read a data set completely.

    In a folder, files are taken in name order; where names tell splits apart (``train-...``, ``test-...``),
    only those of the training split are taken; of a saved ``DatasetDict``, ``train``. Point at the file or
    sub-folder for another.

    Args:
        source: a path, a glob pattern, or ``builtin:NAME``.
        column_map: our column name -> theirs; the named column is added under our name.

    Returns:
        At least one record, in file order.

    Raises:
        DataInvalid: nothing to read, or any row, column or file that is not as it should be; all at once.
        ResourceMissing: pyarrow or the package of a bundled source is not installed.
    """
    wanted = dict(column_map or {})
    log = ProblemLog()
    for ours in wanted.keys() - set(KNOWN_COLUMNS):
        near = difflib.get_close_matches(ours, KNOWN_COLUMNS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Write OURS=THEIRS, e.g. text=note."
        log.add(f"map.{ours}", f"one of {', '.join(KNOWN_COLUMNS)}", repr(ours), hint)
    log.raise_if_any("column map")
    records = builtin.load(source) if source.startswith(builtin.PREFIX) else _read(source, log)
    records = _mapped(records, wanted, log)
    log.raise_if_any(f"data in {source}")
    return records


def _read(source: str, log: ProblemLog) -> Records:
    """All rows of all files of ``source``."""
    rows: list[Record] = []
    origins: list[str] = []
    for path, reader in _files(source, log):
        before = len(rows), log.count
        for number, row in reader(path, log):
            rows.append(row)
            origins.append(f"{path}:{number}")
        if (len(rows), log.count) == before:
            log.add(str(path), "at least one example", "none", "Remove the empty file or fill it.")
    return Records(tuple(rows), tuple(origins))


def _files(source: str, log: ProblemLog) -> list[tuple[Path, Reader]]:
    """The files (or saved data sets) to read, in order, each with its reader."""
    path = Path(source).expanduser()
    if path.is_dir():
        if arrow_files.is_saved_dataset(path):
            return _saved(path, log)
        found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in READERS and file.is_file()]
        found = _training_split([file for file in found if file.name not in METADATA and not _hidden(file, path)], path)
        if not found:
            log.add(source, f"a folder with files of the kinds {SUFFIXES}", "none of these")
    elif path.is_file():
        found = [path]
    else:
        found = [file for file in sorted(_glob(path)) if file.is_file()]
        if not found:
            log.add(source, "a file, folder or pattern that exists", "nothing there", "Check data.source.")
    unknown = [file for file in found if file.suffix.lower() not in READERS]
    for file in unknown:
        log.add(
            str(file), f"a file of the kinds {SUFFIXES}", repr(file.suffix), "Convert it, or rename it to its kind."
        )
    return [(file, READERS[file.suffix.lower()]) for file in found if file not in unknown]


def _saved(folder: Path, log: ProblemLog) -> list[tuple[Path, Reader]]:
    splits = arrow_files.saved_splits(folder)
    if (folder / "state.json").is_file():
        return [(folder, arrow_files.read_saved_dataset)]
    if "train" in splits or len(splits) == 1:
        return [(folder / ("train" if "train" in splits else splits[0]), arrow_files.read_saved_dataset)]
    log.add(str(folder), "a split named train", ", ".join(splits) or "no split", f"Point at one, e.g. {folder}/NAME.")
    return []


def _training_split(files: list[Path], root: Path) -> list[Path]:
    """Without the files that the Hub's naming marks as another split, if it marks some as ``train``."""
    splits = {file: _split_of(file, root) for file in files}
    if "train" not in splits.values():
        return files
    return [file for file in files if splits[file] not in HELD_BACK]


def _split_of(file: Path, root: Path) -> str:
    """``train`` for train.jsonl, train-00000-of-00001.parquet and train/part.csv; empty when no name tells."""
    for part in reversed(file.relative_to(root).with_suffix("").parts):
        word = part.lower().replace("_", "-").replace(".", "-").split("-")[0]
        if word in ("train", *HELD_BACK):
            return word
    return ""


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _glob(path: Path) -> Iterator[Path]:
    """``path`` as a pattern; nothing if it has no wildcard."""
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if any(mark in part for mark in "*?[")), None)
    if first is None:
        return iter(())
    return Path(*parts[:first]).glob(str(Path(*parts[first:])))


def _mapped(records: Records, wanted: Mapping[str, str], log: ProblemLog) -> Records:
    """The records with our column names added."""
    if not wanted or not records:
        return records
    there = records.columns()
    absent = [theirs for theirs in wanted.values() if theirs not in there]
    for theirs in absent:
        near = difflib.get_close_matches(theirs, there, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        log.add(f"map: column {theirs!r}", f"one of {', '.join(there)}", "no such column", hint)
    if absent:
        return records
    rows = tuple({**row, **{ours: row.get(theirs) for ours, theirs in wanted.items()}} for row in records.rows)
    return Records(rows, records.origins)
