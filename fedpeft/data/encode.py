"""Records -> token ids and labels, ready for ``fedpeft.tuning``. No torch: the tokenizer is an argument.

causal-lm: ``prompt`` + ``completion`` and Alpaca train on the completion only, ``messages`` on the
assistant's turns only, ``text`` on everything; a label of -100 marks a token that is not trained on.
Labels are not shifted: as in Hugging Face models, position i is predicted from the positions before i.
seq2seq: source and target (``fedpeft.data.encode_sources``). preference: two answers
(``fedpeft.data.preference.tokens``). embeddings: texts that belong together (``fedpeft.data.together.tokens``).
The other tasks: the text or the pair as it is, and its target (``fedpeft.data.encode_texts``).

Invariants: no example (of embeddings: no text) is longer than ``max_length``; each has at least one token to train on;
examples keep their order, one for each record.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from fedpeft.config.model import Task
from fedpeft.data.encode_sources import encode_sources, whole_sources
from fedpeft.data.encode_texts import (
    IGNORED,
    EncodedDataset,
    Special,
    encode_texts,
    whole_texts,
)
from fedpeft.data.people import owners_of
from fedpeft.data.preference.tokens import encode_preferences, whole_preferences
from fedpeft.data.records import ProblemLog, Records
from fedpeft.data.rendering import (
    Rendered,
    TokenIds,
    Tokenizer,
    bos_of,
    expect_fast,
    fitted,
    framed_texts,
    halves,
    note_nothing_to_train,
    rendered_rows,
)
from fedpeft.data.tasks import detect
from fedpeft.data.together.tokens import encode_together, whole_together
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid

__all__ = ["IGNORED", "EncodedDataset", "Measured", "bos_of", "encode", "measure"]

BATCH = 1024


def encode(records: Records, task: Task, labels: Sequence[str], tokenizer: Tokenizer) -> EncodedDataset:
    """Tokenize validated records.

    Too long an example loses the beginning of its prompt first (a quarter of ``max_length`` of it stays),
    then its end: what is trained on is what is kept.

    Args:
        records: of one client; validated (``fedpeft.data.validate``). May be empty.
        task: kind and ``max_length`` (tokens).
        labels: the class names in order; for classify.
        tokenizer: the base model's; a fast one for causal-lm.

    Returns:
        One encoded example for each record, in order.

    Raises:
        DataInvalid: labels outside ``labels``, columns of another task, a tokenizer without offsets, or rows that the
            chat template or the tokenizer refuses, or of which it keeps nothing: all at once, by file and line.
    """
    if task.record.adds_head:
        return encode_texts(records, task, labels, tokenizer)
    if task.record.from_a_source:
        return encode_sources(records, task.max_length, tokenizer)
    if task.record.prefers:
        return encode_preferences(records, task, tokenizer)
    if task.record.contrasts:
        return encode_together(records, task, tokenizer)
    if not records:
        return EncodedDataset(input_ids=(), labels=(), truncated=0)
    expect_fast(tokenizer)
    ids: list[TokenIds] = []
    targets: list[npt.NDArray[np.int64]] = []
    truncated = unknown = answers = trained_answers = 0
    bos, special, log = bos_of(tokenizer), Special.of(tokenizer), ProblemLog()
    for origin, example, tokens, trained in _tokenized(records, task, tokenizer, bos, log):
        if not trained.any():
            note_nothing_to_train(origin, log)
            continue
        kept, cut = fitted(trained, task.max_length, keep_first=example.bos and bos is not None)
        truncated += cut
        unknown += special.knows_nothing_of(tokens)
        answers += example.answers
        trained_answers += len(example.trained) if example.answers else 0
        ids.append(tokens[kept])
        targets.append(np.where(trained, tokens, IGNORED).astype(np.int64)[kept])
    log.raise_if_any("examples for this base's tokenizer")
    return EncodedDataset(
        input_ids=tuple(ids),
        labels=tuple(targets),
        truncated=truncated,
        unknown=unknown,
        answers=answers,
        context_answers=answers - trained_answers,
        owners=owners_of(records),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a tokenizer makes of records, without keeping the tokens.

    Args:
        lengths: tokens before any truncation -> how many accepted records have so many.
        refused: records that the chat template or the tokenizer does not take.
        unknown, answers, context_answers: see ``EncodedDataset``.
    """

    lengths: Counter[int]
    refused: ProblemLog
    unknown: int = 0
    answers: int = 0
    context_answers: int = 0


def measure(records: Records, task: Task, tokenizer: Tokenizer) -> Measured:
    """Look at validated records through a tokenizer; a record that it refuses is noted and left out."""
    log = ProblemLog()
    if not records:
        return Measured(lengths=Counter(), refused=log)
    if isinstance(tokenizer, WhitespaceTokenizer) and task.record.adds_head and "text_pair" not in records.columns():
        return Measured(lengths=Counter(map(len, map(str.split, map(str, records.values("text"))))), refused=log)
    special, unknown, answers, trained = Special.of(tokenizer), 0, 0, 0
    lengths: Counter[int] = Counter()
    if (whole := _whole(records, task, tokenizer, log)) is not None:
        for ids in whole:
            lengths[len(ids)] += 1
            unknown += special.knows_nothing_of(ids)
        return Measured(lengths=lengths, refused=log, unknown=unknown)
    for origin, example, tokens, targets in _tokenized(records, task, tokenizer, bos_of(tokenizer), log):
        if not targets.any():
            note_nothing_to_train(origin, log)
            continue
        lengths[len(tokens)] += 1
        unknown += special.knows_nothing_of(tokens)
        answers += example.answers
        trained += len(example.trained) if example.answers else 0
    return Measured(
        lengths=lengths,
        refused=log,
        unknown=unknown,
        answers=answers,
        context_answers=answers - trained,
    )


def _whole(records: Records, task: Task, tokenizer: Tokenizer, log: ProblemLog) -> Iterator[TokenIds] | None:
    """The tokens of each example, whatever their length; None: of a task that also counts answers."""
    if task.record.adds_head:
        return whole_texts(records, task, tokenizer)
    if task.record.from_a_source:
        return whole_sources(records, tokenizer)
    if task.record.contrasts:
        return whole_together(records, tokenizer)
    return whole_preferences(records, tokenizer, log) if task.record.prefers else None


def _tokenized(
    records: Records, task: Task, tokenizer: Tokenizer, bos: int | None, log: ProblemLog
) -> Iterator[tuple[str, Rendered, TokenIds, npt.NDArray[np.bool_]]]:
    """Each example's origin, text, tokens with BOS and EOS, and which of them are trained on; the refused are noted."""
    rows = zip(records.origins, records.rows, strict=True)
    while some := list(islice(rows, BATCH)):
        batch: list[tuple[str, Rendered]] = []
        conventions = [detect(Records.of([row]), task.kind) for _, row in some]  # of validated rows all are the same
        made = rendered_rows([row for _, row in some], conventions, tokenizer)
        for (origin, _), convention, one in zip(some, conventions, made, strict=True):
            if isinstance(one, DataInvalid):
                log.add(f"{origin}: {convention.value}", *halves(str(one)))
            else:
                batch.append((origin, one))
        made_of = framed_texts([example for _, example in batch], tokenizer, bos)
        for (origin, example), (tokens, trained) in zip(batch, made_of, strict=True):
            yield origin, example, tokens, trained
