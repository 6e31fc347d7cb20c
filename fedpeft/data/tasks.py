"""Column conventions (TRL's, and Alpaca's): what the columns of a data set say about the task.

``detect`` names the convention, ``validate`` checks every row against it, ``label_names`` fixes the classes
and their order. Nothing here changes a row: rendering and tokenizing are ``fedpeft.data.encode``'s.
"""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedpeft.config.model import Task
from fedpeft.data.records import ProblemLog, Record, Records
from fedpeft.errors import DataInvalid, Problem

__all__ = [
    "KNOWN_COLUMNS",
    "Convention",
    "Findings",
    "Kind",
    "Message",
    "detect",
    "inspect",
    "label_name",
    "label_names",
    "messages_of",
    "validate",
]

Kind = Literal["classify", "causal-lm"]
Message = Mapping[str, str]
"""One turn of a conversation: ``role`` and ``content``."""

ROLES = ("system", "user", "assistant", "tool", "developer")


class Convention(enum.Enum):
    """Which columns carry an example."""

    TEXT_LABEL = "text+label"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt+completion"
    ALPACA = "instruction/input/output"
    TEXT = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return COLUMNS[self]

    @property
    def kind(self) -> Kind:
        """The task these columns are for."""
        return "classify" if self is Convention.TEXT_LABEL else "causal-lm"


COLUMNS: Mapping[Convention, tuple[str, ...]] = {
    Convention.TEXT_LABEL: ("text", "label"),
    Convention.MESSAGES: ("messages",),
    Convention.PROMPT_COMPLETION: ("prompt", "completion"),
    Convention.ALPACA: ("instruction", "output"),  # `input` is optional, row by row
    Convention.TEXT: ("text",),
}
KNOWN_COLUMNS = ("text", "label", "prompt", "completion", "messages", "instruction", "input", "output")


def detect(records: Records, kind: Kind | None = None) -> Convention:
    """The first convention, in the order of ``Convention``, whose columns are all there.

    Args:
        records: the data set; a column counts as there when any row has it.
        kind: only conventions of this task; None: of any, so that ``text`` + ``label`` means classification.

    Raises:
        DataInvalid: no convention fits.
    """
    there = set(records.columns())
    candidates = [convention for convention in Convention if kind in (None, convention.kind)]
    for convention in candidates:
        if there.issuperset(convention.columns):
            return convention
    problem = Problem(
        where="columns",
        expected=" or ".join(" + ".join(convention.columns) for convention in candidates),
        found=", ".join(sorted(there)) or "none",
        remedy="Name yours with --map OURS=THEIRS (data.map in run.toml), e.g. text=note.",
    )
    raise DataInvalid(f"Expected the columns of a {kind or 'known'} task.", problems=(problem,))


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
    """What ``inspect`` found: the convention, what is wrong, and the indices of the rows that are."""

    convention: Convention
    log: ProblemLog
    bad_rows: frozenset[int]


def inspect(records: Records, task: Task) -> Findings:
    """As ``validate``, but the problems are returned and not raised.

    Raises:
        DataInvalid: no convention of ``task.kind`` fits the columns.
    """
    convention = detect(records, task.kind)
    log = ProblemLog()
    bad: set[int] = set()
    labels = LabelCheck(task.labels)
    for i, (row, origin) in enumerate(zip(records.rows, records.origins, strict=True)):
        before = log.count
        CHECKS[convention](row, origin, log)
        if convention is Convention.TEXT_LABEL:
            labels.check(row.get("label"), f"{origin}: label", log)
        if log.count > before:
            bad.add(i)
    return Findings(convention, log, frozenset(bad))


def label_names(records: Records, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The classes in order: ``labels`` if given, else those of the data (integers by value, names by alphabet).

    Raises:
        DataInvalid: fewer than two classes.
    """
    if labels:
        return labels
    found = {name for row in records.rows if (name := label_name(row.get("label"))) is not None}
    if len(found) < 2:
        raise DataInvalid(
            f"Expected at least 2 classes in the column label, found {len(found)} "
            f"({', '.join(sorted(found)) or 'no label'}); give the class names in task.labels."
        )
    if all(name.lstrip("-").isdecimal() for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def label_name(value: object) -> str | None:
    """A label's class name: text as it is, 3 and 3.0 -> "3", True -> "true"; None for what is no class."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float() if math.isfinite(value) and value.is_integer():
            return str(int(value))
        case str() if value.strip():
            return value.strip()
        case _:
            return None


def messages_of(row: Record) -> tuple[Message, ...]:
    """The turns of a validated ``messages`` row, with nothing but role and content."""
    turns = row["messages"]
    if not isinstance(turns, (list, tuple)):
        raise DataInvalid(f"Expected a list of messages, found {type(turns).__name__}.")
    return tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in turns)


def _check_text(row: Record, origin: str, log: ProblemLog, column: str = "text") -> None:
    value = row.get(column)
    if not isinstance(value, str):
        log.add(f"{origin}: {column}", "text", "nothing" if value is None else f"{type(value).__name__} {value!r:.40}")
    elif not value.strip():
        log.add(f"{origin}: {column}", "text", "an empty text", "Fill it or remove the row.")
    elif not _is_unicode(value):
        log.add(f"{origin}: {column}", "Unicode text", "half a surrogate pair", "Correct the escape, e.g. \\ud83d.")


def _is_unicode(text: str) -> bool:
    """No lone surrogates, which JSON escapes can make and no tokenizer takes."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _check_pair(row: Record, origin: str, log: ProblemLog) -> None:
    _check_text(row, origin, log, "prompt")
    _check_text(row, origin, log, "completion")


def _check_alpaca(row: Record, origin: str, log: ProblemLog) -> None:
    _check_text(row, origin, log, "instruction")
    _check_text(row, origin, log, "output")
    if not isinstance(row.get("input"), str | None):
        log.add(f"{origin}: input", "text or nothing", type(row["input"]).__name__)


def _check_messages(row: Record, origin: str, log: ProblemLog) -> None:
    turns = row.get("messages")
    where = f"{origin}: messages"
    if not isinstance(turns, (list, tuple)):
        log.add(where, "a list of {role, content}", "nothing" if turns is None else type(turns).__name__)
        return
    answers = 0
    for number, turn in enumerate(turns, 1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if role not in ROLES or not isinstance(content, str) or not _is_unicode(content):
            log.add(f"{where}[{number}]", f"a role of {', '.join(ROLES)} and a text", f"{turn!r:.60}")
        elif role == "assistant" and content.strip():
            answers += 1
    if not answers:
        log.add(where, "at least one non-empty assistant turn", "none", "There is nothing to learn from this row.")


CHECKS: Mapping[Convention, Callable[[Record, str, ProblemLog], None]] = {
    Convention.TEXT_LABEL: _check_text,
    Convention.MESSAGES: _check_messages,
    Convention.PROMPT_COMPLETION: _check_pair,
    Convention.ALPACA: _check_alpaca,
    Convention.TEXT: _check_text,
}


class LabelCheck:
    """Labels are classes, of one type throughout, and of the named set where there is one."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.first = ""

    def check(self, value: object, where: str, log: ProblemLog) -> None:
        """Check the next row's label."""
        name = label_name(value)
        if name is None:
            log.add(where, "a class: text or a whole number", f"{value!r:.40}", "Fill it or remove the row.")
            return
        sort = "text" if isinstance(value, str) else "truth value" if isinstance(value, bool) else "number"
        self.first = self.first or sort
        if sort != self.first:
            log.add(where, f"a {self.first} as in the rows before", f"the {sort} {value!r:.40}", "Write all alike.")
        elif self.labels and name not in self.labels:
            log.add(where, f"one of {', '.join(self.labels)}", repr(name), "Correct it or add it to task.labels.")
