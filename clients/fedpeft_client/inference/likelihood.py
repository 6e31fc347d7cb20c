"""How likely a language model finds a given continuation: what benchmarks of multiple choice and perplexity ask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.data.rendering import TokenIds
from fedpeft.errors import DataInvalid
from fedpeft.tuning.batches import padded

__all__ = ["Likelihood", "likelihoods"]

Numbers = npt.NDArray[np.int64]

ROWS = 16
LOGITS_BYTES = 256 * 2**20
"""Of one batch: a vocabulary of 150,000 and 400 tokens are this much for one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """Of a continuation behind its context.

    Args:
        log_probability: of all its tokens, in nats; 0 for an empty one.
        greedy: whether each of its tokens is the likeliest at its place.
    """

    log_probability: float
    greedy: bool


@torch.no_grad()
def likelihoods(
    model: nn.Module,
    pairs: Sequence[tuple[TokenIds, TokenIds]],
    *,
    vocabulary: int,
    longest: int | None,
    padding: bool,
) -> list[Likelihood]:
    """Of each pair's second part behind its first.

    Args:
        model: a causal language model.
        pairs: token ids of context (at least one) and continuation, (C,) and (K,).
        vocabulary: of the logits, to bound a batch's memory.
        longest: tokens that the model reads; a longer context loses its beginning. None: any number.
        padding: whether rows of unequal length give what each gives alone (``Decoder.abilities``).

    Raises:
        DataInvalid: a context is empty, or a continuation leaves no room for it.
    """
    inputs, counts = list[Numbers](), list[int]()
    for context, continuation in pairs:
        if not len(context) or (longest is not None and len(continuation) > longest):
            raise DataInvalid(
                f"Expected a context and a continuation of at most {longest} tokens, found {len(context)} and "
                f"{len(continuation)}."
            )
        whole = np.concatenate([context, continuation]).astype(np.int64)
        inputs.append(whole if longest is None else whole[-(longest + 1) :])
        counts.append(len(continuation))
    found: dict[int, Likelihood] = {}
    for rows in _batches([len(ids) - 1 for ids in inputs], vocabulary, alike=not padding):
        logits = _logits(model, [inputs[row][:-1] for row in rows])
        for place, row in enumerate(rows):
            read, count = len(inputs[row]) - 1, counts[row]
            found[row] = _of(logits[place, read - count : read], inputs[row][len(inputs[row]) - count :])
    return [found[row] for row in range(len(pairs))]


def _of(logits: Tensor, tokens: Numbers) -> Likelihood:
    """(K, vocabulary) and (K,)."""
    chosen = torch.from_numpy(tokens)[:, None]
    told = torch.log_softmax(logits.float(), dim=-1).gather(1, chosen)
    greedy = bool((logits.argmax(dim=-1, keepdim=True) == chosen).all())
    return Likelihood(log_probability=float(told.double().sum()), greedy=greedy)


def _logits(model: nn.Module, rows: Sequence[Numbers]) -> Tensor:
    """(b, T, vocabulary); padded on the right, where nothing reads it."""
    ids = torch.from_numpy(padded(rows, 0))
    inputs: dict[str, Any] = {"input_ids": ids}
    there = torch.from_numpy(padded([np.ones(len(row), np.int64) for row in rows], 0))
    if not bool(there.all()):
        inputs["attention_mask"] = there
    logits: Tensor = model(**inputs).logits
    return logits[:, -ids.shape[1] :]  # rows that a method puts before a text have no token


def _batches(lengths: Sequence[int], vocabulary: int, *, alike: bool) -> list[list[int]]:
    """Places in order of length; at most ``ROWS``, and within ``LOGITS_BYTES`` but for single rows."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        most = min(ROWS, LOGITS_BYTES // max(1, 4 * lengths[row] * vocabulary))
        last = found[-1] if found else []
        if not last or len(last) >= most or (alike and lengths[last[-1]] != lengths[row]):
            found.append([row])
        else:
            last.append(row)
    return found
