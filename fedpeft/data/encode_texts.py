"""Texts, pairs of texts and tagged words -> token ids and targets: every task that adds a head to the base.

A tag belongs to a word, and a tokenizer cuts words in pieces: the first piece has the word's tag, the others and the
special tokens have none (``IGNORED``), as in transformers' own token classification. Words are joined by single spaces,
so every fast tokenizer takes them; where one merges two words in a token, the first word's tag counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import cast

import numpy as np
import numpy.typing as npt

from fedpeft.config.task import Task
from fedpeft.data.people import Owners, owners_of
from fedpeft.data.records import ProblemLog, Record, Records
from fedpeft.data.rendering import Encoding, TokenIds, Tokenizer, refused_by_tokenizer
from fedpeft.data.targets import targets_of, words_of
from fedpeft.errors import DataInvalid, foreign

__all__ = [
    "IGNORED",
    "Contrast",
    "EncodedDataset",
    "Preference",
    "Special",
    "encode_texts",
    "first_pieces",
    "text_of",
    "whole_texts",
]

BATCH = 1024

IGNORED = -100
"""The label of a token that is not trained on: what PyTorch's cross entropy ignores by default."""


Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What the loss of preferred answers needs beside their tokens.

    Args:
        beta: of the loss.
        reference: log-probabilities that the base without adapter gives each example's preferred and other answer,
            (n, 2) float32, 0 where there is none; None: not computed yet
            (``fedpeft.tuning.preference.losses.with_reference``).
    """

    beta: float
    reference: npt.NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, parts: "Sequence[Preference | None]") -> "Preference | None":
        """Of examples one after the other; None without any."""
        found = [part for part in parts if part is not None]
        if not found:
            return None
        known = [part.reference for part in found if part.reference is not None]
        return cls(beta=found[0].beta, reference=np.concatenate(known) if len(known) == len(found) else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """What the loss of texts that belong together needs beside their tokens.

    Args:
        scale: of cosines, in front of the softmax.
    """

    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDataset:
    """Token ids and labels of one client's examples.

    Args:
        input_ids: for each example its tokens, int32.
        labels: by the task's ``fedpeft.tasks.Target``: (n,) int64 or float32, (n, outputs) float32, or for each example
            one int64 label a token.
        truncated: how many examples were cut to ``max_length``.
        unknown: how many hold no token but the unknown one, apart from special tokens.
        answers: assistant turns in them; 0 without conversations.
        segments: for each example which of a pair's texts a token is of, 0 or 1; None where the tokenizer does not say.
            Of preferences: 1 on the tokens of the answer that is not preferred, and of its prompt. Of texts that belong
            together: 0 on the anchor, 1 on the positive one, 2 on the negative one.
        of_tokens: whether a token's label is its own, and not to be told from the tokens before it.
        context_answers: those of them that are not trained on, because the chat template rewrites earlier turns.
        owners: whose each is (``fedpeft.data.people``); None where the data names no people.
        preference: of examples that hold answers to be compared; None for other tasks.
        contrast: of examples that hold texts that belong together; None for other tasks.
    """

    input_ids: tuple[TokenIds, ...]
    labels: Targets | tuple[npt.NDArray[np.int64], ...]
    truncated: int
    segments: tuple[TokenIds, ...] | None = None
    of_tokens: bool = False
    unknown: int = 0
    answers: int = 0
    context_answers: int = 0
    owners: Owners | None = None
    preference: Preference | None = None
    contrast: Contrast | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def joined(cls, parts: "Sequence[EncodedDataset]") -> "EncodedDataset":
        """One after the other; at least one, all of one task."""
        arrays = [part.labels for part in parts if isinstance(part.labels, np.ndarray)]
        segments = None
        if any(part.segments is not None for part in parts):
            segments = tuple(row for part in parts for row in part.segments or map(np.zeros_like, part.input_ids))
        owners = None
        if any(part.owners is not None for part in parts):  # without the column, an example is nobody's
            owners = np.concatenate(
                [np.zeros(len(part), np.uint64) if part.owners is None else part.owners for part in parts]
            )
        return cls(
            input_ids=tuple(tokens for part in parts for tokens in part.input_ids),
            labels=cast("Targets", np.concatenate(arrays))
            if arrays
            else tuple(row for part in parts for row in part.labels),
            truncated=sum(part.truncated for part in parts),
            segments=segments,
            of_tokens=parts[0].of_tokens,
            owners=owners,
            preference=Preference.joined([part.preference for part in parts]),
            contrast=parts[0].contrast,
        )


@dataclass(frozen=True, slots=True)
class Special:
    """The tokenizer's unknown token, and its special tokens beside it."""

    unknown: int | None
    others: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Special":
        """Those of this tokenizer."""
        unknown = getattr(tokenizer, "unk_token_id", None)
        others = [number for number in getattr(tokenizer, "all_special_ids", ()) if number != unknown]
        return cls(unknown, np.array(others, dtype=np.int64))

    def knows_nothing_of(self, tokens: TokenIds) -> bool:
        """Whether everything but special tokens is unknown."""
        if self.unknown is None or self.unknown not in tokens:
            return False
        return bool(np.isin(tokens, np.append(self.others, self.unknown)).all())


def text_of(row: Record, task: Task) -> str:
    """What a row asks of the model, without a pair's second text."""
    return " ".join(words_of(row.get("words")) or ()) if task.record.tags_words else str(row["text"])


def encode_texts(records: Records, task: Task, labels: Sequence[str], tokenizer: Tokenizer) -> EncodedDataset:
    """See ``fedpeft.data.encode``; the tokenizer itself truncates, so that its closing special tokens survive."""
    tags = task.record.tags_words
    if tags and not getattr(tokenizer, "is_fast", True):
        raise DataInvalid("Expected a fast tokenizer (tokenizer.json), found a slow one; convert the base's tokenizer.")
    targets = () if tags else targets_of(records, task.record.target, labels)
    special = Special.of(tokenizer)
    ids: list[TokenIds] = []
    segments: list[TokenIds] = []
    of_tokens: list[npt.NDArray[np.int64]] = []
    truncated = unknown = 0
    index, log = {name: i for i, name in enumerate(labels)}, ProblemLog()
    rows = zip(records.origins, records.rows, strict=True)
    while some := list(islice(rows, BATCH)):
        for (origin, row), one in zip(some, _encoded([row for _, row in some], task, tokenizer), strict=True):
            ids.append(one.ids)
            segments.append(one.segments)
            truncated += one.cut
            unknown += special.knows_nothing_of(one.ids)
            if tags:
                of_tokens.append(_tags_of(row, origin, one.offsets, index, log))
    log.raise_if_any("tags")
    return EncodedDataset(
        input_ids=tuple(ids),
        labels=tuple(of_tokens) if tags else targets,
        truncated=truncated,
        unknown=unknown,
        segments=tuple(segments) if any(one.any() for one in segments) else None,
        of_tokens=tags,
        owners=owners_of(records),
    )


def whole_texts(records: Records, task: Task, tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """The tokens of each record before any truncation."""
    rows = iter(records)
    while some := list(islice(rows, BATCH)):
        for part in _alike(some, task):
            for tokens in _tokens(part, task, tokenizer, None)["input_ids"]:
                yield np.asarray(tokens, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One row's tokens, which of a pair's texts each is of, where each is in the text, and whether any was cut."""

    ids: TokenIds
    segments: TokenIds
    offsets: Sequence[object]
    cut: bool


def _encoded(rows: Sequence[Record], task: Task, tokenizer: Tokenizer) -> Iterator[_Encoded]:
    for part in _alike(rows, task):
        whole = _tokens(part, task, tokenizer, None)["input_ids"]
        kept = _tokens(part, task, tokenizer, task.max_length)
        for i, tokens in enumerate(kept["input_ids"]):
            ids = np.asarray(tokens, dtype=np.int32)
            segments = np.zeros_like(ids)
            if _is_pair(part[0], task) and "token_type_ids" in kept:
                segments = np.asarray(kept["token_type_ids"][i], dtype=np.int32)
            offsets = kept["offset_mapping"][i] if task.record.tags_words else ()
            yield _Encoded(ids, segments, offsets, len(whole[i]) > len(ids))


def _alike(rows: Sequence[Record], task: Task) -> Iterator[Sequence[Record]]:
    """Rows that follow each other and are all pairs, or all none: what a row becomes depends on it alone."""
    for _, part in groupby(rows, lambda row: _is_pair(row, task)):
        yield list(part)


def _is_pair(row: Record, task: Task) -> bool:
    return not task.record.tags_words and row.get("text_pair") is not None


def _tokens(rows: Sequence[Record], task: Task, tokenizer: Tokenizer, max_length: int | None) -> Encoding:
    texts, cut = [text_of(row, task) for row in rows], max_length is not None
    with foreign(refused_by_tokenizer):
        if _is_pair(rows[0], task):
            pairs = [str(row["text_pair"]) for row in rows]
            return tokenizer(texts, pairs, truncation=cut, max_length=max_length, verbose=False)
        offsets = task.record.tags_words
        return tokenizer(texts, return_offsets_mapping=offsets, truncation=cut, max_length=max_length, verbose=False)


def _tags_of(
    row: Record, origin: str, offsets: Sequence[object], index: dict[str, int], log: ProblemLog
) -> npt.NDArray[np.int64]:
    """One label a token, (T,): of the first token of each word, its tag."""
    words, tags = words_of(row.get("words")) or (), words_of(row.get("tags")) or ()
    labels = np.full(len(offsets), IGNORED, np.int64)
    for word, position in first_pieces([len(word) for word in words], offsets).items():
        if tags[word] not in index:
            log.add(f"{origin}: tags", f"a tag of {', '.join(index)}", repr(tags[word]))
        labels[position] = index.get(tags[word], IGNORED)
    return labels


def first_pieces(words: Sequence[int], offsets: Sequence[object]) -> dict[int, int]:
    """Word -> the position of its first token; words that no token is of are left out.

    Args:
        words: their lengths in characters; they stand in the text with a space between them.
        offsets: (begin, end) in the text of each token; special tokens are empty.
    """
    ends = np.cumsum(np.array(words, np.int64) + 1)  # of each word, its space included
    found: dict[int, int] = {}
    for position, (begin, end) in enumerate(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)):
        if end <= begin:  # a special token
            continue
        word = int(np.searchsorted(ends, begin, side="right"))
        if begin == ends[word] - 1:  # some tokenizers count the space before a word to its first piece
            word += 1
        if word < len(words):
            found.setdefault(word, position)
    return found
