"""What `fedpeft data check` reports: everything about a data set that decides whether a run on it makes sense.

It looks, and changes nothing; bad rows are listed and left out of the figures, so that one look shows all.
"""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from fedpeft.config.model import Task
from fedpeft.data.encode import Tokenizer, render, token_lengths
from fedpeft.data.holdout import content_keys, split_holdout
from fedpeft.data.records import Record, Records
from fedpeft.data.tasks import Convention, Kind, inspect, label_name
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import Problem

__all__ = ["DataReport", "Example", "Part", "Split", "TokenLengths", "check"]

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
        max_length: tokens an example may have.
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

    def as_json(self) -> dict[str, object]:
        """Plain values for ``json.dumps``."""
        return asdict(self) | {"convention": self.convention.value}


def check(
    records: Records, task: Task, *, holdout: float, seed: int, tokenizer: tuple[str, Tokenizer] | None = None
) -> DataReport:
    """Look at a data set.

    Args:
        records: as loaded, not yet validated.
        task: what it is meant for.
        holdout: share to hold out.
        seed: of the split.
        tokenizer: the base model's name and tokenizer; None: words stand for tokens.

    Raises:
        DataInvalid: the columns fit no convention of ``task.kind``.
    """
    findings = inspect(records, task)
    good = records.select(i for i in range(len(records)) if i not in findings.bad_rows)
    keys = content_keys(good)
    train, held_out = split_holdout(good, holdout, seed)
    name, tokens = tokenizer or ("words", WhitespaceTokenizer())
    classes: dict[str, set[str | None]] = {}
    for row, key in zip(good.rows, keys, strict=True):
        classes.setdefault(key, set()).add(label_name(row.get("label")))
    classify = findings.convention is Convention.TEXT_LABEL
    return DataReport(
        files=tuple(dict.fromkeys(origin.rpartition(":")[0] for origin in records.origins)),
        convention=findings.convention,
        kind=findings.convention.kind,
        examples=len(records),
        usable=len(good),
        empties=sum(_has_empty(records[i], findings.convention) for i in findings.bad_rows),
        duplicates=len(keys) - len(classes),
        contradictions=sum(len(found) > 1 for found in classes.values()) if classify else 0,
        labels=dict(sorted(Counter(str(label_name(row["label"])) for row in good.rows).items())) if classify else {},
        rendered=_examples(good, findings.convention, tokens),
        lengths=_lengths(good, task, name, tokens, approximate=tokenizer is None),
        split=Split(
            train=len(train),
            held_out=len(held_out),
            shared=len(set(content_keys(train)) & set(content_keys(held_out))),
        ),
        problem_count=findings.log.count,
        problems=tuple(findings.log.problems),
    )


def _has_empty(row: Record, convention: Convention) -> bool:
    columns = ("text",) if convention is Convention.TEXT_LABEL else convention.columns
    values = [row.get(column) for column in columns]
    return any(value is None or value == [] or (isinstance(value, str) and not value.strip()) for value in values)


def _examples(records: Records, convention: Convention, tokenizer: Tokenizer) -> tuple[Example, ...]:
    """The first, the middle and the last example."""
    chosen = sorted({0, len(records) // 2, len(records) - 1}) if records else []
    shown: list[Example] = []
    for i in chosen[:EXAMPLES_SHOWN]:
        row, origin = records[i], records.origins[i]
        if convention is Convention.TEXT_LABEL:
            parts = [Part(text=str(row["text"]), trained=False), Part(text=str(label_name(row["label"])), trained=True)]
        else:
            example = render(row, convention, tokenizer)
            parts, done = [], 0
            for begin, end in example.trained:
                parts.append(Part(text=example.text[done:begin], trained=False))
                parts.append(Part(text=example.text[begin:end], trained=True))
                done = end
            parts.append(Part(text=example.text[done:], trained=False))
        shown.append(Example(origin=origin, parts=tuple(part for part in parts if part.text)))
    return tuple(shown)


def _lengths(
    records: Records, task: Task, name: str, tokenizer: Tokenizer, *, approximate: bool
) -> TokenLengths | None:
    if not records:
        return None
    lengths = token_lengths(records, task, tokenizer)  # (n,)
    values = np.percentile(lengths, PERCENTILES, method="higher")
    return TokenLengths(
        tokenizer=name,
        approximate=approximate,
        percentiles={percent: int(value) for percent, value in zip(PERCENTILES, values, strict=True)},
        max_length=task.max_length,
        truncated=int((lengths > task.max_length).sum()),
    )
