"""Column conventions (TRL's, and Alpaca's): what the columns of a data set say about the task.

``detect`` names the convention, ``validate`` checks every row against it, ``label_names`` fixes the classes
and their order. Nothing here changes a row: rendering and tokenizing are ``fedpeft.data.encode``'s.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from fedpeft.config.model import Task
from fedpeft.data.preference.rows import check_preference, check_wanted
from fedpeft.data.records import ProblemLog, Record, Records
from fedpeft.data.row_checks import (
    check_alpaca,
    check_messages,
    check_pair,
    check_source,
    check_text,
    check_texts,
    check_together,
    check_words,
    keys_not_read,
)
from fedpeft.data.targets import LabelCheck, check_target, label_name, names_in, number_of
from fedpeft.errors import DataInvalid, Problem
from fedpeft.tasks import KNOWN_COLUMNS, TASKS, Convention, Kind, Target, TaskRecord, task_of
from fedpeft.tasks.conventions import misread

__all__ = [
    "Findings",
    "Message",
    "detect",
    "fits",
    "inspect",
    "messages_of",
    "task_for",
    "validate",
]

_LOOKED_AT = 1000
"""Labels that tell a task."""

Message = Mapping[str, str]
"""One turn of a conversation: ``role`` and ``content``."""


def detect(records: Records, kind: Kind | None = None, *, unread: Sequence[str] = ()) -> Convention:
    """The first convention, in the order of ``Convention``, whose columns are all there.

    Args:
        records: the data set; a column counts as there when any row has it.
        kind: only conventions of this task; None: of any, so that ``text`` + ``label`` means classification.
        unread: columns that the files have beside; named in a refusal.

    Raises:
        DataInvalid: no convention fits.
    """
    there = set(records.columns())
    candidates = tuple(Convention) if kind is None else TASKS[kind].conventions
    for convention in candidates:
        if there.issuperset(convention.columns):
            return convention
    problem = Problem(
        where="columns",
        expected=" or ".join(" + ".join(convention.columns) for convention in candidates),
        found=", ".join(sorted({*there, *unread})) or "none",
        remedy=f"Name yours with --map OURS=THEIRS (data.map in run.toml), e.g. {_likely_map((*there, *unread))}.",
    )
    raise DataInvalid(f"Expected the columns of a {kind or 'known'} task.", problems=(problem,))


def task_for(records: Records, *, unread: Sequence[str] = ()) -> TaskRecord:
    """The task that columns and labels look like: the first that the columns are for, or what lists or decimals say.

    Raises:
        DataInvalid: no convention fits.
    """
    found = task_of(detect(records, unread=unread))
    if not found.one_class:
        return found
    labels = list(islice((value for value in records.values("label") if value is not None), _LOOKED_AT))
    numbers = [number_of(value) for value in labels]
    if any(isinstance(value, list | tuple) for value in labels):
        return _with_target(Target.CLASSES)
    if numbers and all(number is not None for number in numbers) and any(number % 1 for number in numbers if number):
        return _with_target(Target.VALUE)
    return found


def _with_target(target: Target) -> TaskRecord:
    return next(record for record in TASKS.values() if record.target is target)


def _likely_map(there: Sequence[str]) -> str:
    """What to write after ``--map``: columns that are ours but for case and marks, else an example."""
    plain = {re.sub(r"\W|_", "", name).casefold(): name for name in there}
    alike = [f"{ours}={plain[ours]}" for ours in KNOWN_COLUMNS if ours in plain and plain[ours] != ours]
    return ",".join(alike) or "text=note"


def validate(records: Records, task: Task) -> Convention:
    """Check every row: the columns are there, texts are non-empty strings, labels and messages are well formed.

    Raises:
        DataInvalid: every bad row, by file and line (the first 20, and how many there are).
    """
    findings = inspect(records, task)
    findings.log.raise_if_any(f"{findings.convention.value} examples")
    return findings.convention


@dataclass(frozen=True, slots=True)
class Findings:
    """What ``inspect`` found.

    Args:
        convention: of the columns.
        log: what is wrong.
        bad: which rows are, shape (n,).
        unused_keys: keys of messages beside role and content that hold something -> how often; nothing reads them.
    """

    convention: Convention
    log: ProblemLog
    bad: npt.NDArray[np.bool_]
    unused_keys: Counter[str]


def inspect(records: Records, task: Task, *, unread: Sequence[str] = ()) -> Findings:
    """As ``validate``, but the problems are returned and not raised.

    Raises:
        DataInvalid: no convention of ``task.kind`` fits the columns.
    """
    convention = detect(records, task.kind, unread=unread)
    log = ProblemLog()
    bad = np.zeros(len(records), np.bool_)
    labels = LabelCheck(task.labels)
    unused_keys: Counter[str] = Counter()
    quick = convention is Convention.TEXT_LABEL and task.record.one_class
    _expect_read(records.columns(), convention, log)
    doubtful = _doubtful(records, task.labels) if quick else None
    for i, row, origin in _rows(records, doubtful):
        before = log.count
        CHECKS[convention](row, origin, log)
        check_target(row, origin, task, log)
        if task.record.one_class:
            labels.check(row.get("label"), f"{origin}: label", log)
        elif convention is Convention.MESSAGES:
            unused_keys.update(keys_not_read(row.get("messages")))
        if log.count > before:
            bad[i] = True
    return Findings(convention, log, bad, unused_keys)


def _rows(records: Records, numbers: Iterator[int] | None) -> Iterator[tuple[int, Record, str]]:
    """These rows, or all of them, with their numbers and origins."""
    if numbers is not None:
        yield from ((i, records[i], records.origins[i]) for i in numbers)
        return
    for i, (row, origin) in enumerate(zip(records.rows, records.origins, strict=True)):
        yield i, row, origin


def _expect_read(there: Collection[str], convention: Convention, log: ProblemLog) -> None:
    """Notes a column that changes what an example means and is not read."""
    if (found := misread(convention, there)) is not None:
        column, why = found
        log.add("columns", f"{convention.value} alone", column, f"Remove it or rename it: {why}.")


def _doubtful(records: Records, allowed: tuple[str, ...]) -> Iterator[int]:
    """The rows of a classification set to look at closely: all but plain texts with a label that was good before.

    A text label is good if it is allowed and the first label was a text too: that depends on no row in between.
    """
    good: set[object] = set()
    text_first: bool | None = None
    number = 0
    for texts, labels in zip(records.windows("text"), records.windows("label"), strict=True):
        # The usual window holds nothing new, and is found so without a look at each row.
        if _are_plain_texts(texts) and set(map(type, labels)) == {str} and good.issuperset(labels):
            number += len(texts)
            continue
        for text, label in zip(texts, labels, strict=True):
            is_text = type(label) is str
            if not (is_text and label in good and _are_plain_texts((text,))):
                yield number
            name = label_name(label)
            if text_first is None and name is not None:
                text_first = is_text
            if is_text and text_first and name is not None and (not allowed or name in allowed):
                good.add(label)
            number += 1


def _are_plain_texts(values: Sequence[object]) -> bool:
    """Whether all are texts without half a surrogate pair, and none is empty or white space: none is wrong."""
    if set(map(type, values)) != {str}:
        return False
    texts = [str(value) for value in values]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # two halves of different texts make no whole
        return False
    return all(map(str.strip, texts))


def fits(row: Record, task: Task) -> bool:
    """Whether a row can be learnt from under this task, which depends on the row alone.

    ``inspect`` holds rows against each other, for whoever can mend them. A device in a round must not: what one
    example holds would decide whether the others count.
    """
    try:
        convention = detect(Records.of([row]), task.kind)
    except DataInvalid:
        return False
    log = ProblemLog()
    _expect_read(row.keys(), convention, log)
    CHECKS[convention](row, "", log)
    check_target(row, "", task, log)
    names = names_in(row, task.record.target)
    return not log.count and (not task.record.one_class or bool(names)) and all(name in task.labels for name in names)


def messages_of(row: Record) -> tuple[Message, ...]:
    """The turns of a validated ``messages`` row, with nothing but role and content."""
    turns = row["messages"]
    if not isinstance(turns, (list, tuple)):
        raise DataInvalid(f"Expected a list of messages, found {type(turns).__name__}.")
    return tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in turns)


CHECKS: Mapping[Convention, Callable[[Record, str, ProblemLog], None]] = {
    Convention.TEXT_PAIR_LABEL: check_texts,
    Convention.TEXT_LABEL: check_text,
    Convention.WORDS_TAGS: check_words,
    Convention.ANCHOR_POSITIVE_NEGATIVE: check_together,
    Convention.ANCHOR_POSITIVE: check_together,
    Convention.SOURCE_TARGET: check_source,
    Convention.PROMPT_CHOSEN_REJECTED: check_preference,
    Convention.CHOSEN_REJECTED: check_preference,
    Convention.PROMPT_COMPLETION_LABEL: check_wanted,
    Convention.MESSAGES: check_messages,
    Convention.PROMPT_COMPLETION: check_pair,
    Convention.ALPACA: check_alpaca,
    Convention.TEXT: check_text,
}
