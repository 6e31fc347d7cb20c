"""Answers to held-out prompts, and how good they are: ROUGE-L and exact match (``fedpeft.tasks.generated``).

Prompt and reference are taken from an example's own tokens: the reference is what the last labels say, the prompt all
that stands before it. So a model is asked with the very tokens that it was trained to answer behind, whatever wrote
them: a chat template, Alpaca's, a prompt and its completion, or a program. An example without anything before its
labels asks nothing, and one that fills ``task.max_length`` may have lost its end: both are left out.

Greedy, with a key-value cache where the model can; nothing is drawn, and the model is left as it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedpeft.base.architecture import has_two_stacks
from fedpeft.config.task import Task
from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.data.rendering import TokenIds
from fedpeft.errors import ConfigInvalid
from fedpeft.tasks.generated import Generated, Generation, exact_match, rouge_l
from fedpeft.tuning.accelerator import products
from fedpeft.tuning.batches import evaluation_stream
from fedpeft.tuning.evaluate import Evaluation
from fedpeft.tuning.generation.decoder import Decoder, Sampling
from fedpeft.tuning.generation.sources import SourceDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["with_answers"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One example taken apart: its place, its prompt and its reference, (T,) each."""

    place: int
    prompt: TokenIds
    reference: TokenIds


def with_answers(
    score: Evaluation,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    examples: EncodedDataset,
    task: Task,
    *,
    generation: Generation | None = None,
    weights: npt.NDArray[np.float64] | None = None,
    tokenizing: AbstractContextManager[object] | None = None,
) -> Evaluation:
    """An evaluation with the lanes of ``Generated``; as it is where nothing is to be generated.

    Args:
        score: of the same model and examples.
        model: with its adapter.
        tokenizer: the base's.
        examples: held-out ones.
        task: of the run.
        generation: how much; None: as the task says.
        weights: of each example in the lanes, (n,), above 0; None: all are 1.
        tokenizing: held while the tokenizer works, where it is shared; can be entered again and again.

    Raises:
        ConfigInvalid: something is to be generated for a task that does not write.
    """
    if generation is not None and not task.record.generates:
        raise ConfigInvalid(f"Expected a task whose answers can be generated, found {task.kind}; leave --generate out.")
    wanted = generation or task.generation
    if wanted is None or not len(examples):
        return score
    special = {*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", ())}
    order = evaluation_stream(examples, batch_size=1).order(0)
    alone = tokenizing or nullcontext()
    suitable = _suitable(examples, order.tolist(), special, longest=task.max_length)
    made: Decoder | SourceDecoder
    with alone:
        ends = {_closing(one.reference, tokenizer, special) for one in suitable} | {tokenizer.eos_token_id}
        closing = frozenset(token for token in ends if token is not None)
        made = SourceDecoder(model, tokenizer, closing) if has_two_stacks(model) else Decoder(model, closing)
    asked = [one for one in suitable if made.longest is None or len(one.prompt) < made.longest][: wanted.rows]
    found = np.zeros((len(asked), 2), np.float32)
    for i, (one, answer) in enumerate(zip(asked, _answers(made, model, asked, wanted), strict=True)):
        with alone:
            texts = [_text(tokens, tokenizer) for tokens in (one.reference, answer)]
        found[i] = rouge_l(*texts), exact_match(*texts)
    own = np.ones(len(asked)) if weights is None else weights[[one.place for one in asked]]
    lanes = sum(
        (weight * Generated().tally(row[None], row, [0]) for row, weight in zip(found, own, strict=True)), np.zeros(3)
    )
    return replace(score, lanes=lanes, lane_weight=float(own.sum()) or 1.0)


def _suitable(examples: EncodedDataset, order: Sequence[int], special: set[int], *, longest: int) -> list[_Asked]:
    """Those that ask something and are whole, in this order."""
    found = []
    for place in order:
        tokens, labels = examples.input_ids[place], np.asarray(examples.labels[place])
        trained = np.flatnonzero(labels != IGNORED)
        if not len(trained) or len(tokens) >= longest:
            continue
        breaks = np.flatnonzero(np.diff(trained) > 1)
        start = int(trained[breaks[-1] + 1] if len(breaks) else trained[0])
        if any(int(token) not in special for token in tokens[:start]):
            found.append(_Asked(place, tokens[:start], tokens[start : int(trained[-1]) + 1]))
    return found


def _closing(reference: TokenIds, tokenizer: Any, special: set[int]) -> int | None:
    """The special token behind which nothing of an answer comes; None where it ends without one."""
    for token in reversed(reference.tolist()):
        if token in special:
            return int(token)
        if str(tokenizer.decode([token])).strip():
            return None
    return None


def _answers(
    made: Decoder | SourceDecoder, model: nn.Module, asked: Sequence[_Asked], wanted: Generation
) -> Iterator[list[int]]:
    written: list[list[int]] = [[] for _ in asked]
    how = [Sampling(max_tokens=wanted.max_new_tokens)] * len(asked)
    with torch.no_grad(), products(next(model.parameters()).device):
        for token in made.generate([one.prompt for one in asked], how):
            if token.token is not None:
                written[token.row].append(token.token)
    yield from written


def _text(tokens: Sequence[int] | TokenIds, tokenizer: Any) -> str:
    return str(tokenizer.decode(list(map(int, tokens)), skip_special_tokens=True))
