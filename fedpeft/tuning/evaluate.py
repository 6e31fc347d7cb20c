"""Held-out loss and accuracy. Changes nothing: no gradient, no module state, no random number."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.accelerator import products
from fedpeft.tuning.batches import bucketed, collate, evaluation_stream, lengths_of
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["Evaluation", "evaluate", "evaluate_whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sums, so that evaluations of several devices add up.

    Args:
        loss_sum: cross entropy in nats, summed over the predictions.
        correct: how many top-1 predictions are right.
        examples: how many predictions: examples of a classifier, labelled tokens of a language model.
    """

    loss_sum: float
    correct: int
    examples: int


@torch.no_grad()
def evaluate(
    union: UnionAdapter,
    examples: EncodedDataset,
    *,
    limit: int,
    batch_size: int,
    cache: HiddenSource | None = None,
) -> Evaluation:
    """Loss and top-1 accuracy of the adapter as it is now.

    Args:
        union: the model with its adapter.
        examples: held-out examples.
        limit: how many to take, always the same ones, spread at random; 0 takes all.
        batch_size: examples a batch.
        cache: of these examples (``ActivationCache.for_evaluation``); without effect when every layer adapts.

    Raises:
        DataInvalid: no examples.
    """
    split = SplitForward(union)
    chosen = evaluation_stream(examples, batch_size=batch_size).order(0)[: limit or None]
    # Nothing is learnt from the order, so all of them are sorted by length together: hardly anything is padding.
    (batches,) = bucketed(chosen, lengths_of(examples), batch_size=batch_size, window=len(chosen))
    loss_sum, correct, count = 0.0, 0, 0
    for indices in batches:
        batch = collate(examples, indices, pad_id=split.pad_id, device=split.device)
        with products(split.device):
            logits, labels = logits_of(split, batch, cache)
        loss_sum += float(functional.cross_entropy(logits.float(), labels, reduction="sum"))
        correct += int((logits.argmax(dim=-1) == labels).sum())
        count += len(labels)
    return Evaluation(loss_sum=loss_sum, correct=correct, examples=count)


@torch.no_grad()
def evaluate_whole(model: nn.Module, examples: EncodedDataset, *, batch_size: int) -> Evaluation:
    """As ``evaluate`` of all examples, of any model of transformers' form: one without our adapter's parts.

    Args:
        model: a classifier or a causal language model.
        examples: of its task.
        batch_size: examples a batch.

    Raises:
        DataInvalid: no examples.
    """
    pad = getattr(model.config, "pad_token_id", None)
    order = evaluation_stream(examples, batch_size=batch_size).order(0)
    (batches,) = bucketed(order, lengths_of(examples), batch_size=batch_size, window=len(order))
    loss_sum, correct, count = 0.0, 0, 0
    for indices in batches:
        batch = collate(examples, indices, pad_id=pad or 0, device=next(model.parameters()).device)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
        labels = batch.labels
        if labels.ndim == 2:  # (b, s, vocabulary) -> (n, vocabulary)
            logits, labels = logits[:, :-1], labels[:, 1:]
            chosen = labels != IGNORED
            logits, labels = logits[chosen], labels[chosen]
        loss_sum += float(functional.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(dim=-1) == labels).sum())
        count += len(labels)
    return Evaluation(loss_sum=loss_sum, correct=correct, examples=count)
