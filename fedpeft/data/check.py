"""What `fedpeft data check` reports: everything about a data set that decides whether a run on it makes sense.

It looks, and changes nothing; bad rows are listed and left out of the figures, so that one look shows all.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from fedpeft.config.model import Task
from fedpeft.data.encode import Measured, measure
from fedpeft.data.encode_sources import pair_of
from fedpeft.data.encode_texts import text_of
from fedpeft.data.formats import Loaded
from fedpeft.data.holdout import divided
from fedpeft.data.people import PERSON, People, note_nobodys, people_in
from fedpeft.data.preference.rows import Side, sides_of
from fedpeft.data.records import MAX_PROBLEMS, Record, Records
from fedpeft.data.remarks import (
    answer_remark,
    label_remarks,
    loaded_remarks,
    number_remark,
    text_remarks,
    unknown_remark,
    unused_columns,
    unused_remarks,
)
from fedpeft.data.rendering import Rendered, Tokenizer, rendered_rows
from fedpeft.data.targets import label_name, names_in, number_of
from fedpeft.data.tasks import inspect
from fedpeft.data.together.tokens import texts_together
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid, Problem
from fedpeft.tasks import Convention, Kind

__all__ = ["DataReport", "Example", "Part", "Split", "TokenLengths", "check", "check_loaded"]

SCHEMA_VERSION = 1
EXAMPLES_SHOWN = 3
PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a rendered example, and whether the model is trained to produce it."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example as the model sees it."""

    origin: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLengths:
    """Tokens an example has before truncation.

    Args:
        tokenizer: whose tokens; "words" when no base model was named.
        approximate: the counts are words, not tokens.
        percentiles: percent -> tokens; 100 is the longest.
        max_length: tokens that an example may have.
        truncated: examples longer than that.
    """

    tokenizer: str
    approximate: bool
    percentiles: dict[int, int]
    max_length: int
    truncated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The held-out split of the whole data set, as one client would make it."""

    train: int
    held_out: int
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """The findings on one data set.

    Args:
        examples: rows read; ``usable`` of them are without fault.
        empties: rows with an empty or missing text among the faulty ones.
        duplicates: usable rows whose content an earlier one has, whatever case and white space.
        contradictions: texts that occur with different labels.
        labels: class -> usable examples, by name; empty for causal-lm.
        problems: the first 20 faults of ``problem_count``.
        remarks: what is odd without being wrong, and what is not used, a sentence each.
        people: how the usable rows are spread over people; None where no column names them.
    """

    schema_version: int = SCHEMA_VERSION
    files: tuple[str, ...]
    convention: Convention
    kind: Kind
    examples: int
    usable: int
    empties: int
    duplicates: int
    contradictions: int
    labels: dict[str, int]
    rendered: tuple[Example, ...]
    lengths: TokenLengths | None
    split: Split
    problem_count: int
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...] = ()
    people: People | None = None

    def as_json(self) -> dict[str, object]:
        """Plain values for ``json.dumps``."""
        return asdict(self) | {"convention": self.convention.value}


def check(
    records: Records, task: Task, *, holdout: float, seed: int, tokenizer: tuple[str, Tokenizer] | None = None
) -> DataReport:
    """As ``check_loaded``, of records alone."""
    loaded = Loaded(records=records, files=tuple(dict.fromkeys(one.rpartition(":")[0] for one in records.origins)))
    return check_loaded(loaded, task, holdout=holdout, seed=seed, tokenizer=tokenizer)


def check_loaded(
    loaded: Loaded,
    task: Task,
    *,
    holdout: float,
    seed: int,
    tokenizer: tuple[str, Tokenizer] | None = None,
    column_map: Mapping[str, str] | None = None,
) -> DataReport:
    """Look at a data set.

    Args:
        loaded: as it was read, not yet validated.
        task: what it is meant for.
        holdout: share to hold out.
        seed: of the split.
        tokenizer: the base model's name and tokenizer; None: words stand for tokens.
        column_map: our column name -> theirs, as it was loaded with.

    Raises:
        DataInvalid: the columns fit no convention of ``task.kind``.
    """
    records = loaded.records
    findings = inspect(records, task, unread=loaded.unused)
    convention = findings.convention
    if PERSON in (column_map or {}):  # who names the column means to protect people: a row of nobody is a mistake
        note_nobodys(records, findings.log)
    good = records if not findings.bad.any() else records.select(np.flatnonzero(~findings.bad))
    name, tokens = tokenizer or ("words", WhitespaceTokenizer())
    measured = measure(good, task, tokens)
    classify = task.record.one_class
    names_read = {**loaded.aliases, **(column_map or {})}
    division = divided(good, holdout, seed)
    held_out = int(np.count_nonzero(division.held))
    labels = _labels(good, task)
    unused = unused_columns((*records.columns(), *loaded.unused), convention, names_read)
    return DataReport(
        files=loaded.files,
        convention=convention,
        kind=task.kind,
        examples=len(records),
        usable=len(good) - measured.refused.count,
        empties=sum(_has_empty(row, convention) for row in records.select(np.flatnonzero(findings.bad))),
        duplicates=len(good) - division.distinct,
        contradictions=division.contradictions if classify else 0,
        labels=labels,
        rendered=_examples(good, task, convention, tokens),
        lengths=_lengths(measured, task, name, approximate=tokenizer is None),
        split=Split(
            train=len(good) - held_out,
            held_out=held_out,
            shared=division.shared,
        ),
        problem_count=findings.log.count + measured.refused.count,
        problems=(*findings.log.problems, *measured.refused.problems)[:MAX_PROBLEMS],
        remarks=(
            *loaded_remarks(loaded, column_map or {}),
            *text_remarks(good, convention),
            *unused_remarks(unused, findings.unused_keys),
            *label_remarks(labels if classify else {}),
            *number_remark(good, task),
            *answer_remark(measured.context_answers, measured.answers),
            *unknown_remark(measured.unknown, len(good)),
        ),
        people=people_in(good),
    )


def _labels(records: Records, task: Task) -> dict[str, int]:
    """How many examples (of tags: words) have each class, label or tag; none where they have no names."""
    if not task.record.one_class:
        counted = Counter(name for row in records.rows for name in names_in(row, task.record.target))
        return dict(sorted(counted.items()))
    found: Counter[tuple[type, object]] = Counter()
    counts: Counter[str] = Counter()
    for window in records.windows("label"):
        if set(map(type, window)) == {str}:
            counts.update(window)  # type: ignore[arg-type]
        else:
            found.update(zip(map(type, window), window, strict=True))  # by type too: True is equal to 1
    found.update({(str, text): count for text, count in counts.items()})
    names: Counter[str] = Counter()
    for (_, value), count in found.items():
        names[str(label_name(value))] += count
    return dict(sorted(names.items()))


def _has_empty(row: Record, convention: Convention) -> bool:
    columns = ("text",) if convention is Convention.TEXT_LABEL else convention.columns
    values = [row.get(column) for column in columns]
    return any(value is None or value == [] or (isinstance(value, str) and not value.strip()) for value in values)


def _examples(records: Records, task: Task, convention: Convention, tokenizer: Tokenizer) -> tuple[Example, ...]:
    """The first, the middle and the last example."""
    chosen = sorted({0, len(records) // 2, len(records) - 1}) if records else []
    shown: list[Example] = []
    for i in chosen[:EXAMPLES_SHOWN]:
        row, origin = records[i], records.origins[i]
        parts: list[Part]
        if task.record.from_a_source:
            source, target = pair_of(row)
            parts = [Part(text=source, trained=False), Part(text=target, trained=True)]
        elif task.record.contrasts:
            texts = texts_together(row)
            parts = [Part(text=f"{' | ' * (n > 0)}{text}", trained=n == 1) for n, text in enumerate(texts)]
        elif task.record.adds_head:
            parts = [Part(text=asked, trained=False) for asked in _asked(row, task)]
            parts.append(Part(text=_answer(row, task), trained=True))
        else:
            parts = []
            sides = sides_of(row) if task.record.prefers else (Side(row, convention),)
            for side in sides:
                if side is None:
                    continue
                (example,) = rendered_rows([side.row], [side.convention], tokenizer, [side.context])
                if isinstance(example, DataInvalid):  # among the problems already
                    break
                parts += [Part(text="\n", trained=False)] if parts else []
                parts += _parts(example)
            if not parts:
                continue
        shown.append(Example(origin=origin, parts=tuple(part for part in parts if part.text)))
    return tuple(shown)


def _parts(example: Rendered) -> list[Part]:
    parts, done = [], 0
    for begin, end in example.trained:
        parts.append(Part(text=example.text[done:begin], trained=False))
        parts.append(Part(text=example.text[begin:end], trained=True))
        done = end
    return [*parts, Part(text=example.text[done:], trained=False)]


def _asked(row: Record, task: Task) -> tuple[str, ...]:
    pair = row.get("text_pair")
    return (text_of(row, task),) if pair is None else (text_of(row, task), f" | {pair}")


def _answer(row: Record, task: Task) -> str:
    if task.record.a_number:
        return f"{number_of(row.get('label')):g}"
    return "; ".join(names_in(row, task.record.target)) if not task.record.tags_words else str(row["tags"])


def _lengths(measured: Measured, task: Task, name: str, *, approximate: bool) -> TokenLengths | None:
    if not measured.lengths:
        return None
    lengths = np.array(sorted(measured.lengths.items()), np.int64)  # (different lengths, 2): tokens, examples
    upto = np.cumsum(lengths[:, 1])
    places = np.ceil((upto[-1] - 1) * (np.array(PERCENTILES) / 100))  # "higher": no length that no example has
    values = lengths[np.searchsorted(upto, places, side="right"), 0]
    return TokenLengths(
        tokenizer=name,
        approximate=approximate,
        percentiles={percent: int(value) for percent, value in zip(PERCENTILES, values, strict=True)},
        max_length=task.max_length,
        truncated=int(lengths[lengths[:, 0] > task.max_length, 1].sum()),
    )
