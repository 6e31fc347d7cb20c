"""A source and its target -> one row of tokens, for an encoder-decoder (``fedpeft.tuning.two_stacks`` takes it apart).

Both as the tokenizer writes them, with their special tokens; the target as a target where the tokenizer makes a
difference (mBART, NLLB: the mark of a language).
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from fedpeft.data.encode_texts import IGNORED, EncodedDataset, Special
from fedpeft.data.people import owners_of
from fedpeft.data.records import Record, Records
from fedpeft.data.rendering import TokenIds, Tokenizer, refused_by_tokenizer
from fedpeft.errors import foreign

__all__ = ["encode_sources", "pair_of", "source_tokens", "target_tokens", "whole_sources"]

BATCH = 1024
COLUMNS = (("source", "target"), ("prompt", "completion"))
"""Of a row: what is read, and what is to be written."""


def encode_sources(records: Records, max_length: int, tokenizer: Tokenizer) -> EncodedDataset:
    """Tokenize validated pairs.

    A pair that is too long loses the end of its target down to half of ``max_length``, then the end of its source;
    closing special tokens stay.

    Args:
        records: with the columns source and target, or prompt and completion.
        max_length: tokens of source and target together.
        tokenizer: the base's.

    Returns:
        One row each: the source's tokens, labelled ``IGNORED``, and the target's, each its own label.
    """
    special, closing = Special.of(tokenizer), frozenset(getattr(tokenizer, "all_special_ids", ()))
    ids: list[TokenIds] = []
    labels: list[npt.NDArray[np.int64]] = []
    truncated = unknown = 0
    for source, target in _pairs(records, tokenizer):
        fewer = _cut(target, max(max_length // 2, max_length - len(source)), closing)
        first = _cut(source, max_length - len(fewer), closing)
        truncated += len(first) + len(fewer) < len(source) + len(target)
        unknown += special.knows_nothing_of(source)
        ids.append(np.concatenate((first, fewer)).astype(np.int32))
        labels.append(np.concatenate((np.full(len(first), IGNORED), fewer)).astype(np.int64))
    return EncodedDataset(
        input_ids=tuple(ids), labels=tuple(labels), truncated=truncated, unknown=unknown, owners=owners_of(records)
    )


def whole_sources(records: Records, tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """Source and target of each record, one behind the other, whatever their length."""
    for source, target in _pairs(records, tokenizer):
        yield np.concatenate((source, target)).astype(np.int32)


def source_tokens(texts: list[str], tokenizer: Tokenizer) -> list[TokenIds]:
    """Texts as an encoder reads them, (T,) each."""
    with foreign(refused_by_tokenizer):
        return [np.asarray(ids, dtype=np.int32) for ids in tokenizer(texts, verbose=False)["input_ids"]]


def target_tokens(texts: list[str], tokenizer: Tokenizer) -> list[TokenIds]:
    """Texts as a decoder writes them, (T,) each."""
    if not hasattr(tokenizer, "_switch_to_target_mode"):  # a target is written as a source is
        return source_tokens(texts, tokenizer)
    with foreign(refused_by_tokenizer):
        made = tokenizer(text_target=texts, verbose=False)["input_ids"]  # type: ignore[call-arg]
    return [np.asarray(ids, dtype=np.int32) for ids in made]


def _pairs(records: Records, tokenizer: Tokenizer) -> Iterator[tuple[TokenIds, TokenIds]]:
    rows = iter(records)
    while some := list(islice(rows, BATCH)):
        read, written = zip(*map(pair_of, some), strict=True)
        yield from zip(source_tokens(list(read), tokenizer), target_tokens(list(written), tokenizer), strict=True)


def pair_of(row: Record) -> tuple[str, str]:
    """Source and target of a validated record."""
    source, target = next(pair for pair in COLUMNS if pair[0] in row)
    return str(row[source]), str(row[target])


def _cut(tokens: TokenIds, size: int, closing: frozenset[int]) -> TokenIds:
    """The first ``size`` tokens; special tokens at the end stay there."""
    if len(tokens) <= size:
        return tokens
    tail = len(tokens)
    while tail and int(tokens[tail - 1]) in closing:
        tail -= 1
    end = tokens[tail:] if len(tokens) - tail < size else tokens[:0]
    return np.concatenate((tokens[: size - len(end)], end))
