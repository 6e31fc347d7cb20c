"""What is odd about a data set without being wrong, in one line each: for `data check` and before a simulation.

A class called ``nan``, classes that differ in case alone, files and columns that nobody reads, answers that the chat
template turns into context: a run on such data works and learns something else than was meant. Whatever is not used
has a name here.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from fedpeft.config.task import Task
from fedpeft.data.choosing import LeftOut
from fedpeft.data.formats import Loaded
from fedpeft.data.opening import COMPRESSED
from fedpeft.data.records import Records
from fedpeft.data.targets import number_of
from fedpeft.tasks import Convention

__all__ = [
    "answer_remark",
    "file_remarks",
    "label_remarks",
    "loaded_remarks",
    "means_missing",
    "number_remark",
    "text_remarks",
    "twin_remarks",
    "unknown_remark",
    "unused_columns",
    "unused_remarks",
]

SHOWN = 8
LONGEST = 16
"""No word for a missing value has so many characters."""
MEANS_MISSING = frozenset(
    ("nan", "none", "null", "na", "n/a", "#n/a", "n.a.", "nil", "nat", "<na>", "missing", "undefined", "-", "--", "?")
)
"""How programs and people write that a value is not there, in lower case."""


def label_remarks(labels: Mapping[str, int]) -> list[str]:
    """Of classes: those that look like a missing value, and those that are one class in two spellings.

    Args:
        labels: class -> examples.
    """
    remarks = []
    missing = [name for name in labels if means_missing(name)]
    if missing:
        listed = _listed(f"{name} ({labels[name]:,})" for name in missing)
        remarks.append(f"classes that look like a missing value: {listed}; remove such rows unless they are meant")
    alike: dict[str, list[str]] = {}
    for name in labels:
        alike.setdefault(_plain(name), []).append(name)
    pairs = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if pairs:
        remarks.append(f"classes that differ in case, form or zeros alone: {_listed(pairs)}; write them alike")
    return remarks


def number_remark(records: Records, task: Task) -> list[str]:
    """Of numbers: their range, which a deployed run must be told."""
    if not task.record.a_number:
        return []
    numbers = [number for value in records.values("label") if (number := number_of(value)) is not None]
    if not numbers:
        return []
    return [f"numbers from {min(numbers):g} to {max(numbers):g}; task.range says so to devices"]


def file_remarks(left_out: Sequence[LeftOut]) -> list[str]:
    """Of files: those that lie beside the data and are not read."""
    if not left_out:
        return []
    are = "1 file is" if len(left_out) == 1 else f"{len(left_out):,} files are"
    return [f"{are} not read: {_listed(str(one) for one in left_out)}"]


def twin_remarks(files: Sequence[str]) -> list[str]:
    """Of files that are read: those that differ in their ending alone, as a table saved in two formats."""
    alike: dict[str, list[str]] = {}
    for name in files:
        suffixes = Path(name).suffixes
        cut = sum(map(len, suffixes[-2:] if suffixes[-1:] and suffixes[-1].lower() in COMPRESSED else suffixes[-1:]))
        alike.setdefault(name[: len(name) - cut], []).append(name)
    twins = [" and ".join(names) for names in alike.values() if len(names) > 1]
    return [f"files that differ in their ending alone: {_listed(twins)}; is one a copy of the other?"] if twins else []


def text_remarks(records: Records, convention: Convention) -> list[str]:
    """Of texts: those that look like a missing value."""
    columns = [column for column in convention.asked if column != "messages"]
    empty: Counter[str] = Counter()
    for window in chain.from_iterable(records.windows(column) for column in columns):
        short = [text for text in window if isinstance(text, str) and len(text) < LONGEST]
        empty.update(filter(means_missing, short))
    if not empty:
        return []
    listed = _listed(f"{text} ({count:,})" for text, count in sorted(empty.items()))
    return [f"texts that look like a missing value: {listed}; remove such rows unless they are meant"]


def means_missing(text: str) -> bool:
    """Whether a label or a text is how programs and people write that there is none."""
    return len(text) < LONGEST and text.strip().casefold() in MEANS_MISSING


def unused_columns(
    there: Iterable[str], convention: Convention, names: Mapping[str, str], also: Iterable[str] = ()
) -> list[str]:
    """The columns that nothing reads.

    Args:
        there: every column of the data, and our names of mapped ones.
        convention: what is read of them.
        names: our column name -> theirs.
        also: further columns that are read, such as the client column.
    """
    used = {*convention.columns, *also, *({"person"} & names.keys()), *names.values()}
    if convention is Convention.ALPACA:
        used.add("input")
    return [column for column in dict.fromkeys(there) if column not in used]


def loaded_remarks(loaded: Loaded, names: Mapping[str, str]) -> list[str]:
    """Of what was read: files and rows that are left out, files that may be copies, columns that others replace.

    Args:
        names: our column name -> theirs.
    """
    replaced = [f"{ours} ({theirs} is read in its place)" for ours, theirs in names.items() if ours in loaded.replaced]
    there = [f"columns that are not used: {_listed(replaced)}"] if replaced else []
    return [*file_remarks(loaded.left_out), *twin_remarks(loaded.files), *loaded.remarks, *there]


def unused_remarks(columns: Sequence[str], keys: Mapping[str, int]) -> list[str]:
    """Of columns, and of keys inside messages: those that nothing reads."""
    remarks = []
    if columns:
        remarks.append(f"columns that are not used: {_listed(columns)}")
    if keys:
        counted = _listed(f"{key} ({count:,})" for key, count in keys.items())
        remarks.append(f"keys of messages that are not used: {counted}; only role and content are")
    return remarks


def answer_remark(context: int, answers: int) -> list[str]:
    """Of conversations: answers that are not trained on."""
    if not context:
        return []
    why = "because the chat template rewrites earlier turns"
    return [f"{context:,} of {answers:,} assistant turns are context only and not trained on, {why}"]


def unknown_remark(unknown: int, examples: int) -> list[str]:
    """Of texts: those in which the tokenizer knows nothing."""
    if not unknown:
        return []
    return [f"{unknown:,} of {examples:,} examples hold no token that the base's tokenizer knows"]


def _plain(name: str) -> str:
    """A name in one case, one Unicode form and with single spaces; a number by its value: 1 is 1.0 and 01."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    try:
        number = float(text)
    except ValueError:
        return text
    return text if number != number else repr(number)  # noqa: PLR0124 - NaN is unlike itself


def _listed(items: Iterable[str]) -> str:
    all_items = list(items)
    more = f" and {len(all_items) - SHOWN} more" if len(all_items) > SHOWN else ""
    return ", ".join(all_items[:SHOWN]) + more
