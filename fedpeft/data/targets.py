"""What stands beside a row's text: a class, a number, some labels, or a tag for each word. Read, checked, numbered.

Nothing here looks at a token. This is the one place that says what a value means, so a check, an encoding and a device
that leaves out what it cannot use agree.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from fedpeft.config.task import Task
from fedpeft.data.records import ProblemLog, Record, Records
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Target

__all__ = [
    "LabelCheck",
    "check_target",
    "label_name",
    "label_names",
    "label_set",
    "names_in",
    "number_of",
    "range_of",
    "targets_of",
    "words_of",
]

Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float32]


def label_name(value: object) -> str | None:
    """A label's class name: text as it is, 3, 3.0 and Decimal(3) -> "3", True -> "true"; None for what is no class."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float() | Decimal() if math.isfinite(value) and value == int(value):
            return str(int(value))
        case str() if value.strip():
            return value.strip()
        case _:
            return None


def number_of(value: object) -> float | None:
    """A label's number, also written as text; None for what is none, truth values among it."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def label_set(value: object) -> tuple[str, ...] | None:
    """The labels of a list, or of a cell ``a;b``; an empty one has none. None for what is neither."""
    if isinstance(value, str):
        return tuple(dict.fromkeys(part.strip() for part in value.split(";") if part.strip()))
    if not isinstance(value, list | tuple):
        return None
    names = [label_name(one) for one in value]
    return None if None in names else tuple(dict.fromkeys(str(name) for name in names))


def words_of(value: object) -> tuple[str, ...] | None:
    """A list of words or tags, or a cell of them between spaces; None for what is neither."""
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, list | tuple):
        return None
    names = [label_name(one) for one in value]
    return None if None in names else tuple(map(str, names))


def names_in(row: Record, target: Target) -> tuple[str, ...]:
    """Every output's name that a row holds; none where its target has no names or cannot be read."""
    match target:
        case Target.CLASS:
            name = label_name(row.get("label"))
            return () if name is None else (name,)
        case Target.CLASSES:
            return label_set(row.get("label")) or ()
        case Target.TAGS:
            return words_of(row.get("tags")) or ()
        case _:
            return ()


def check_target(row: Record, origin: str, task: Task, log: ProblemLog) -> None:
    """One row's target against its task; a class is checked by ``LabelCheck``, which knows the rows before."""
    where = f"{origin}: label"
    match task.record.target:
        case Target.VALUE:
            number = number_of(row.get("label"))
            if number is None:
                log.add(where, "a number", f"{row.get('label')!r:.40}", "Fill it or remove the row.")
            elif task.range is not None and not task.range[0] <= number <= task.range[1]:
                expected = f"a number of task.range, {task.range[0]:g} to {task.range[1]:g}"
                log.add(where, expected, f"{number:g}", "Correct it, or widen the range.")
        case Target.CLASSES:
            labels = label_set(row.get("label"))
            if labels is None:
                log.add(where, "a list of labels, or a text such as a;b", f"{row.get('label')!r:.40}")
            else:
                _among(labels, task, where, log)
        case Target.TAGS:
            words, tags = words_of(row.get("words")), words_of(row.get("tags"))
            if not words or tags is None:
                found = f"{row.get('words')!r:.30} and {row.get('tags')!r:.30}"
                log.add(f"{origin}: words", "a list of words and one of tags", found)
            elif len(words) != len(tags):
                log.add(f"{origin}: tags", f"a tag for each of {len(words)} words", str(len(tags)))
            else:
                _among(tags, task, f"{origin}: tags", log)
        case _:
            pass


def _among(names: Iterable[str], task: Task, where: str, log: ProblemLog) -> None:
    other = next((name for name in names if task.labels and name not in task.labels), None)
    if other is not None:
        log.add(where, f"one of {', '.join(task.labels)}", repr(other), "Correct it or add it to task.labels.")


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


def label_names(records: Records, labels: tuple[str, ...] = (), target: Target = Target.CLASS) -> tuple[str, ...]:
    """The outputs in order: ``labels`` if given, else those of the data: integers by value, names by alphabet, O first.

    Raises:
        DataInvalid: fewer than two.
    """
    if labels:
        return labels
    found = {name for row in records.rows for name in names_in(row, target)}
    if len(found) < 2:
        column = "tags" if target is Target.TAGS else "label"
        raise DataInvalid(
            f"Expected at least 2 classes in the column {column}, found {len(found)} "
            f"({', '.join(sorted(found)) or 'no label'}); give the class names in task.labels."
        )
    numbers = {name: number for name in found if (number := _whole_number(name)) is not None}
    if len(numbers) == len(found):
        return tuple(sorted(found, key=lambda name: (numbers[name], name)))
    return tuple(sorted(found, key=lambda name: (target is Target.TAGS and name != "O", name)))


def range_of(records: Records) -> tuple[float, float]:
    """The lowest and the highest number of the data.

    Raises:
        DataInvalid: fewer than two different numbers.
    """
    found = [number for value in records.values("label") if (number := number_of(value)) is not None]
    low, high = min(found, default=0.0), max(found, default=0.0)
    if low == high:
        raise DataInvalid("Expected numbers that differ in the column label, found one alone; give task.range.")
    return low, high


def _whole_number(name: str) -> int | None:
    """The number that a name writes; None for other names, such as ``--1`` or one of a thousand digits."""
    return int(name) if re.fullmatch(r"-?\d{1,18}", name, re.ASCII) else None


def targets_of(records: Records, target: Target, labels: Sequence[str]) -> Numbers:
    """The targets of whole examples as the loss takes them: see ``Target``.

    Raises:
        DataInvalid: labels outside ``labels``, or that are no labels; all at once.
    """
    index, log = {name: i for i, name in enumerate(labels)}, ProblemLog()
    shape = (len(records), len(labels)) if target is Target.CLASSES else (len(records),)
    numbers: Numbers = np.zeros(shape, np.int64) if target is Target.CLASS else np.zeros(shape, np.float32)
    fill = _FILL[target]
    for i, (row, origin) in enumerate(zip(records.rows, records.origins, strict=True)):
        if not fill(row, index, numbers, i):
            expected = f"a label of {', '.join(labels)}" if labels else "a number"
            log.add(f"{origin}: label", expected, f"{row.get('label')!r:.40}")
    log.raise_if_any("labels")
    return numbers


def _class(row: Record, index: Mapping[str, int], numbers: Numbers, i: int) -> bool:
    name = label_name(row.get("label"))
    numbers[i] = index.get(name or "", 0)
    return name in index


def _value(row: Record, index: Mapping[str, int], numbers: Numbers, i: int) -> bool:
    number = number_of(row.get("label"))
    numbers[i] = number or 0.0
    return number is not None


def _classes(row: Record, index: Mapping[str, int], numbers: Numbers, i: int) -> bool:
    names = label_set(row.get("label"))
    for name in names or ():
        if name in index:
            numbers[i, index[name]] = 1.0
    return names is not None and all(name in index for name in names)


_FILL: Mapping[Target, Callable[[Record, Mapping[str, int], Numbers, int], bool]] = {
    Target.CLASS: _class,
    Target.VALUE: _value,
    Target.CLASSES: _classes,
}
