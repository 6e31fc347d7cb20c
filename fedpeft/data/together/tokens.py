"""Texts that belong together -> one row of tokens per example; ``fedpeft.tuning.several.sides`` takes rows apart.

Each text as the tokenizer writes it, with its special tokens, as it is when it is asked for a vector of its own: the
anchor, the positive one, in triplets the negative one. ``segments`` says which is which. ``task.max_length`` is of each
text, as it is when one is embedded.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from fedpeft.config.task import Task
from fedpeft.data.encode_texts import Contrast, EncodedDataset, Special
from fedpeft.data.people import owners_of
from fedpeft.data.records import ProblemLog, Record, Records
from fedpeft.data.rendering import TokenIds, Tokenizer, refused_by_tokenizer
from fedpeft.errors import foreign

__all__ = ["encode_together", "texts_together", "whole_together"]

BATCH = 512
COLUMNS = ("anchor", "positive", "negative")


def texts_together(row: Record) -> list[str]:
    """The two or three texts of a validated row."""
    return [str(row[column]) for column in COLUMNS if row.get(column) is not None]


def encode_together(records: Records, task: Task, tokenizer: Tokenizer) -> EncodedDataset:
    """Tokenize validated records; the tokenizer itself truncates, so that its closing special tokens survive.

    Raises:
        DataInvalid: a text of which the tokenizer makes nothing: it would be told from no other.
    """
    ids: list[TokenIds] = []
    segments: list[TokenIds] = []
    truncated = unknown = 0
    special, log = Special.of(tokenizer), ProblemLog()
    kept, whole = (_tokens(records, tokenizer, most) for most in (task.max_length, None))
    for origin, texts, uncut in zip(records.origins, kept, whole, strict=True):
        if not all(map(len, texts)):
            log.add(origin, "texts of a token or more", "one of none", "Remove the row.")
        truncated += any(len(one) < len(other) for one, other in zip(texts, uncut, strict=True))
        ids.append(np.concatenate(texts).astype(np.int32))
        segments.append(np.repeat(np.arange(len(texts)), [len(text) for text in texts]).astype(np.int32))
        unknown += any(special.knows_nothing_of(text) for text in texts)
    log.raise_if_any("texts")
    return EncodedDataset(
        input_ids=tuple(ids),
        labels=np.zeros(len(ids), np.int64),
        truncated=truncated,
        unknown=unknown,
        segments=tuple(segments),
        owners=owners_of(records),
        contrast=Contrast(scale=task.scale),
    )


def whole_together(records: Records, tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """The longest text of each record, whatever its length: what ``task.max_length`` is of."""
    return (max(texts, key=len) for texts in _tokens(records, tokenizer, None))


def _tokens(records: Records, tokenizer: Tokenizer, max_length: int | None) -> Iterator[list[TokenIds]]:
    rows = iter(records)
    while some := [texts_together(row) for row in islice(rows, BATCH)]:
        flat = [text for texts in some for text in texts]
        with foreign(refused_by_tokenizer):
            made = tokenizer(flat, truncation=max_length is not None, max_length=max_length, verbose=False)["input_ids"]
        found = iter(made)
        for texts in some:
            yield [np.asarray(next(found), dtype=np.int32) for _ in texts]
