"""Which files a folder or pattern stands for: of each the kind, and by name what is left out and why.

Splits are told by the words that Hugging Face's ``datasets`` looks for in the names of files and folders, set apart
by other characters than letters or by a capital; ``testset``, ``testData`` and ``split=test`` are such words too.
Where a name says *train*, only such files are read, as there; a file whose name says *test* or *validation* is never
read for training unless the user names that file itself, or every match of a pattern is one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.data import arrow_files
from fedpeft.data.opening import plain_suffix
from fedpeft.data.records import ProblemLog
from fedpeft.errors import DataInvalid, foreign
from fedpeft.plugins import plugins

__all__ = ["KINDS", "OWN_KINDS", "LeftOut", "choose", "split_of_word"]

EXISTING = "a file, folder or pattern that exists"

OWN_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
KINDS = (*OWN_KINDS, *(kind for name in plugins("format") if (kind := f".{name}") not in OWN_KINDS))
"""Ends of the names of files that can be read: fedpeft's own, then those of plug-ins."""
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val", "validate"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout"),
}
METADATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
DOCUMENTS = re.compile(r"(readme|license|licence|notice|changelog)(\..*)?|.*\.(md|rst)", re.IGNORECASE)
REMEDIES: Mapping[str, str] = {
    ".xlsx": "Save it as CSV UTF-8.",
    ".xls": "Save it as CSV UTF-8.",
    ".ods": "Save it as CSV UTF-8.",
    ".zip": "Unpack it.",
    ".7z": "Unpack it.",
    ".tar": "Unpack it.",
    ".tgz": "Unpack it.",
    ".rar": "Unpack it.",
    ".z": "Unpack it.",
    ".gz": "Put its kind into its name, as in rows.jsonl.gz.",
    ".bz2": "Put its kind into its name, as in rows.jsonl.bz2.",
    ".xz": "Put its kind into its name, as in rows.jsonl.xz.",
    ".zst": "Put its kind into its name, as in rows.jsonl.zst.",
    ".sqlite": "Export the table as CSV UTF-8.",
    ".db": "Export the table as CSV UTF-8.",
    ".orc": "Write it as Parquet.",
    ".avro": "Write it as Parquet.",
    ".pkl": "Write it as Parquet: fedpeft never unpickles.",
    ".pickle": "Write it as Parquet: fedpeft never unpickles.",
    ".txt": 'Write it as JSONL, {"text": ...} a line.',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file that lies beside those that are read.

    Args:
        path: it.
        why: in a few words.
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


def choose(source: str, log: ProblemLog) -> tuple[list[Path], list[LeftOut]]:
    """The files (or the saved data set's folder) that ``source`` stands for, in name order, and those left out.

    Args:
        source: a file, a folder or a pattern.
        log: where it is noted that there is nothing, or nothing clear.
    """
    try:
        with foreign(DataInvalid):  # ~nobody, a name of a thousand characters
            path = Path(source).expanduser()
            found = [path] if source.strip() and path.exists() else sorted(_glob(path)) if source.strip() else []
    except DataInvalid as error:
        log.add(source[:80], EXISTING, str(error), "Check data.source.")
        return [], []
    if found == [path] and path.is_dir():
        return _saved(path, log) if arrow_files.is_saved_dataset(path) else _folder(path, log)
    if found == [path] and path.is_file():
        _expect_kind(path, log)
        return [path] if plain_suffix(path) in KINDS else [], []
    kept = [file for file in found if file.is_file()]
    if not kept:
        log.add(source, EXISTING, "a pipe or a device" if found else "nothing there", _where_it_is(source))
    found = kept
    for file in found:
        _expect_kind(file, log)
    root = _fixed_part(path)
    readable = [file for file in found if plain_suffix(file) in KINDS]
    chosen, left_out = _training_split(readable, root, log)
    if not chosen and not log.count:  # a pattern of nothing but test files is meant
        return readable, []
    return chosen, left_out


def _where_it_is(source: str) -> str:
    """What to do about a source that is not there."""
    if re.match(r"\w+://|hub:", source):
        return "Download it first: data is read from this machine alone."
    return "Check data.source."


def _folder(root: Path, log: ProblemLog) -> tuple[list[Path], list[LeftOut]]:
    there = [file for file in sorted(root.rglob("*")) if file.is_file() and not _hidden(file, root)]
    there = [file for file in there if file.name not in METADATA]
    readable = [file for file in there if plain_suffix(file) in KINDS]
    others = [
        LeftOut(path=file, why=f"not of the kinds {', '.join(KINDS)}. {_remedy(file)}".rstrip())
        for file in there
        if file not in set(readable) and not DOCUMENTS.fullmatch(file.name)
    ]
    if not readable:
        near = f"; there are {', '.join(file.path.name for file in others[:5])}" if others else ""
        log.add(str(root), f"a folder with files of the kinds {', '.join(KINDS)}", f"none of these{near}")
        return [], others
    chosen, held = _training_split(readable, root, log)
    if not chosen and not log.count:
        remedy = f"Name the file itself if you mean to train on it, e.g. {readable[0]}."
        log.add(str(root), "files to train on", f"only {_listed(held)}", remedy)
    return chosen, [*others, *held]


def _training_split(files: Sequence[Path], root: Path, log: ProblemLog) -> tuple[list[Path], list[LeftOut]]:
    """The files of the training split: those that say so, else those that say nothing; and the rest."""
    splits = {file: _split_of(file, root) for file in files}
    for file, split in splits.items():
        if split == "both":
            log.add(str(file), "a name that says train or test", "one that says both", "Rename it, or name it itself.")
    marked = "train" in splits.values()
    chosen = [file for file in files if splits[file] == ("train" if marked else "")]
    left_out = []
    for file in files:
        if file not in chosen and splits[file] != "both":
            why = f"the {splits[file]} split" if splits[file] else "its name does not say train, as others do"
            left_out.append(LeftOut(path=file, why=why))
    return chosen, left_out


def _split_of(file: Path, root: Path) -> str:
    """``train``, ``validation`` or ``test`` by the innermost part of the name with such a word; or "", or "both"."""
    for part in reversed(file.relative_to(root).parts):
        apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", part)
        words = set(re.split(r"[\W_\d]+", apart.lower()))
        if {"hold", "out"} <= words or {"held", "out"} <= words:
            words.add("holdout")
        found = {split for word in words if (split := split_of_word(word))}
        if "train" in found and len(found) > 1:
            return "both"
        if found:
            return sorted(found)[0]
    return ""


def split_of_word(word: str) -> str:
    """``train``, ``validation`` or ``test``; "" for a word of no split. ``testset`` and ``testa`` are test."""
    stem = re.sub(r"(?<=.{3})(set|data|split|sample|[ab])$", "", word)
    return next((split for split, marks in SPLIT_WORDS.items() if word in marks or stem in marks), "")


def _saved(folder: Path, log: ProblemLog) -> tuple[list[Path], list[LeftOut]]:
    splits = arrow_files.saved_splits(folder)
    if (folder / "state.json").is_file():
        return [folder], []
    if "train" not in splits:
        found = ", ".join(splits) or "no split"
        log.add(str(folder), "a split named train", found, f"Point at one, e.g. {folder / (splits or ('NAME',))[0]}.")
        return [], []
    others = [LeftOut(path=folder / split, why=f"the split {split}") for split in splits if split != "train"]
    return [folder / "train"], others


def _expect_kind(file: Path, log: ProblemLog) -> None:
    if plain_suffix(file) not in KINDS:
        remedy = _remedy(file) or "Convert it, or rename it to its kind."
        log.add(str(file), f"a file of the kinds {', '.join(KINDS)}", repr(file.suffix), remedy)


def _remedy(file: Path) -> str:
    if ".tar" in (suffix.lower() for suffix in file.suffixes):
        return REMEDIES[".tar"]
    return REMEDIES.get(file.suffix.lower(), "")


def _listed(left_out: Sequence[LeftOut]) -> str:
    shown = ", ".join(str(one) for one in left_out[:5])
    return shown if len(left_out) <= 5 else f"{shown} and {len(left_out) - 5} more"


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if _wild(part)), len(parts))
    return Path(*parts[:first])


def _glob(path: Path) -> Iterator[Path]:
    """``path`` as a pattern; nothing if it has no wildcard."""
    root = _fixed_part(path)
    if root == path:
        return iter(())
    return root.glob(str(path.relative_to(root)))


def _wild(part: str) -> bool:
    return any(mark in part for mark in "*?[")
