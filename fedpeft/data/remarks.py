"""What is odd about a data set without being wrong, in one line each: for `data check` and before a simulation.

A class called ``nan``, classes that differ in case alone, files and columns that nobody reads, answers that the chat
template turns into context: a run on such data works and learns something else than was meant. Whatever is not used
has a name here.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from fedpeft.data.choosing import LeftOut
from fedpeft.data.tasks import Convention

__all__ = ["answer_remark", "file_remarks", "label_remarks", "unknown_remark", "unused_columns", "unused_remarks"]

SHOWN = 8
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
    missing = [name for name in labels if name.strip().casefold() in MEANS_MISSING]
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


def file_remarks(left_out: Sequence[LeftOut]) -> list[str]:
    """Of files: those that lie beside the data and are not read."""
    if not left_out:
        return []
    return [f"{len(left_out)} files are not read: {_listed(str(one) for one in left_out)}"]


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
    used = {*convention.columns, *also, *names.values()}
    if convention is Convention.ALPACA:
        used.add("input")
    return [column for column in dict.fromkeys(there) if column not in used]


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
