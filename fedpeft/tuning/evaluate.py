"""Held-out loss and accuracy. Changes nothing: no gradient, no module state, no random number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.base.architecture import has_two_stacks
from fedpeft.config.task import Task
from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.methods.union import UnionAdapter
from fedpeft.tasks import Measure
from fedpeft.tasks.generated import Generated
from fedpeft.tuning.accelerator import products
from fedpeft.tuning.batches import Batch, Indices, bucketed, collate, evaluation_stream, lengths_of
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.preference.losses import preference_losses, preferred_rows, rewards_of
from fedpeft.tuning.row_loss import right_rows, row_losses, summed_loss
from fedpeft.tuning.several.contrast import contrastive_losses
from fedpeft.tuning.several.pooling import mean_of_tokens
from fedpeft.tuning.several.retrieval import cosines_by_group, nearest_of
from fedpeft.tuning.several.sides import sides_of
from fedpeft.tuning.split_forward import SplitForward
from fedpeft.tuning.two_stacks import two_stacks

__all__ = ["Evaluation", "evaluate", "evaluate_whole", "margins_of", "metrics_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sums, so that evaluations of several devices add up.

    Args:
        loss_sum: cross entropy in nats, summed over the predictions.
        correct: how many top-1 predictions are right.
        examples: how many predictions: examples of a classifier, tagged words, labelled tokens of a language model.
        rows: how many examples they are of.
        lanes: what the examples add to the lanes of the task's measure, each times its weight, (lanes,); None without a
            measure.
        lane_weight: the weights of those examples together; each is 1 unless others were given.
    """

    loss_sum: float
    correct: int
    examples: int
    rows: int = 0
    lanes: npt.NDArray[np.float64] | None = None
    lane_weight: float = 0.0

    @classmethod
    def joined(cls, parts: "Sequence[Evaluation]") -> "Evaluation":
        """Of all these examples together."""
        lanes = [part.lanes for part in parts if part.lanes is not None]
        return cls(
            loss_sum=sum(part.loss_sum for part in parts),
            correct=sum(part.correct for part in parts),
            examples=sum(part.examples for part in parts),
            rows=sum(part.rows for part in parts),
            lanes=np.sum(lanes, axis=0) if lanes else None,
            lane_weight=sum(part.lane_weight for part in parts),
        )

    @property
    def lane_means(self) -> npt.NDArray[np.float64] | None:
        """Of each lane over the examples, (lanes,); None without a measure or examples."""
        return None if self.lanes is None or self.lane_weight <= 0 else self.lanes / self.lane_weight


@torch.no_grad()
def evaluate(
    union: UnionAdapter,
    examples: EncodedDataset,
    *,
    limit: int,
    batch_size: int,
    cache: HiddenSource | None = None,
    measure: Measure | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Evaluation:
    """Loss and top-1 accuracy of the adapter as it is now.

    Args:
        union: the model with its adapter.
        examples: held-out examples.
        limit: how many to take, always the same ones, spread at random; 0 takes all.
        batch_size: examples per batch.
        measure: of the task; None: loss and accuracy alone.
        weights: of each example in the measure's lanes, (n,), above 0; None: all are 1.
        cache: of these examples (``ActivationCache.for_evaluation``); without effect when every layer adapts.

    Raises:
        DataInvalid: no examples.
    """
    split = SplitForward(union)
    if examples.contrast is not None:

        def vectors(indices: Indices) -> Tensor:
            batch = collate(examples, indices, pad_id=split.pad_id, device=split.device)
            with products(split.device):
                return logits_of(split, batch, cache)[0]

        return _retrieved(examples, vectors, limit=limit, batch_size=batch_size, measure=measure, weights=weights)
    chosen = evaluation_stream(examples, batch_size=batch_size).order(0)[: limit or None]
    # Nothing is learnt from the order, so all of them are sorted by length together: hardly anything is padding.
    (batches,) = bucketed(chosen, lengths_of(examples), batch_size=batch_size, window=len(chosen))
    found = [Evaluation(loss_sum=0.0, correct=0, examples=0)]
    for indices in batches:
        batch = collate(examples, indices, pad_id=split.pad_id, device=split.device)
        with products(split.device):
            logits, labels = logits_of(split, batch, cache)
        own = None if weights is None else weights[indices]
        if batch.preference is not None:
            found.append(_compared(logits, labels, batch, split.pad_id, measure, own))
            continue
        found.append(_measured(logits, labels, indices, measure, _owners(split, batch), own))
    return Evaluation.joined(found)


@torch.no_grad()
def evaluate_whole(
    model: nn.Module, examples: EncodedDataset, *, batch_size: int, measure: Measure | None = None
) -> Evaluation:
    """As ``evaluate`` of all examples, of any model of transformers' form: one without our adapter's parts.

    Args:
        model: a classifier, of texts or tokens, a language model or an encoder-decoder.
        examples: of its task.
        batch_size: examples per batch.
        measure: of the task; None: loss and accuracy alone.

    Raises:
        DataInvalid: no examples.
    """
    pad = getattr(model.config, "pad_token_id", None)
    if examples.contrast is not None:

        def vectors(indices: Indices) -> Tensor:
            device = next(model.parameters()).device
            some = sides_of(collate(examples, indices, pad_id=pad or 0, device=device), pad_id=pad or 0).batch
            states = model(input_ids=some.input_ids, attention_mask=some.attention_mask).last_hidden_state
            return mean_of_tokens(states, some.attention_mask)

        return _retrieved(examples, vectors, limit=0, batch_size=batch_size, measure=measure)
    order = evaluation_stream(examples, batch_size=batch_size).order(0)
    (batches,) = bucketed(order, lengths_of(examples), batch_size=batch_size, window=len(order))
    found = [Evaluation(loss_sum=0.0, correct=0, examples=0)]
    for indices in batches:
        batch = collate(examples, indices, pad_id=pad or 0, device=next(model.parameters()).device)
        if batch.preference is not None:
            found.append(_compared(*_answer_rows(model, batch, pad or 0), batch, pad or 0, measure))
            continue
        logits, labels = _outputs(model, batch, pad_id=pad or 0)
        owners = list(range(len(indices)))
        if logits.dim() == 3:  # (b, s, outputs) -> (n, outputs)
            if not (examples.of_tokens or has_two_stacks(model)):
                logits, labels = logits[:, :-1], labels[:, 1:]
            chosen = labels != IGNORED
            owners = chosen.nonzero()[:, 0].tolist()
            logits, labels = logits[chosen], labels[chosen]
        found.append(_measured(logits, labels, indices, measure, owners))
    return Evaluation.joined(found)


def _outputs(model: nn.Module, batch: Batch, *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Float32 logits (b, outputs) or (b, s, outputs), and the labels beside them; of an encoder-decoder (b, t) each."""
    if has_two_stacks(model):
        apart = two_stacks(model, batch, pad_id=pad_id)
        return model(**apart.inputs()).logits.float(), apart.labels
    segments = {} if batch.segments is None else {"token_type_ids": batch.segments}
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **segments).logits
    return logits.float(), batch.labels


@torch.no_grad()
def margins_of(model: nn.Module, examples: EncodedDataset, *, batch_size: int) -> npt.NDArray[np.float32]:
    """The reward of the preferred answer over the other one's, (n,), of examples to be compared with a reference."""
    pad = getattr(model.config, "pad_token_id", None) or 0
    found = np.zeros(len(examples), np.float32)
    for indices in np.array_split(np.arange(len(examples), dtype=np.int64), -(-len(examples) // batch_size)):
        batch = collate(examples, indices, pad_id=pad, device=next(model.parameters()).device)
        logits, labels = _answer_rows(model, batch, pad)
        rewards, _ = rewards_of(row_losses(logits, labels), sides_of(batch, pad_id=pad), batch)
        found[indices] = (rewards[:, 0] - rewards[:, 1]).cpu().numpy()
    return found


def metrics_of(task: Task, score: Evaluation) -> dict[str, float]:
    """Loss, accuracy where the task has one, and the task's own metrics, by name. Of one example or more."""
    found = {"loss": score.loss_sum / score.examples}
    if task.record.accuracy:
        found["accuracy"] = score.correct / score.examples
    measure = Generated() if task.record.generates else task.measure
    means = score.lane_means  # a share, such as recall, is one of means and not of sums
    return found if measure is None or means is None else found | measure.metrics(means)


def _retrieved(
    examples: EncodedDataset,
    vectors: Callable[[Indices], Tensor],
    *,
    limit: int,
    batch_size: int,
    measure: Measure | None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Evaluation:
    """Of texts that belong together: each group's anchors among all its texts."""
    parts = []
    for group, scale, found in cosines_by_group(examples, vectors, limit=limit, batch_size=batch_size):
        nearest, lanes = nearest_of(found).numpy(), None
        if measure is not None:
            own = None if weights is None else weights[group]
            lanes = _weighed(measure, nearest, nearest, range(len(group)), own)
        parts.append(
            Evaluation(
                loss_sum=float(contrastive_losses(found, scale).sum()),
                correct=0,
                examples=len(group),
                rows=len(group),
                lanes=lanes,
                lane_weight=float(len(group) if weights is None else weights[group].sum()),
            )
        )
    return Evaluation.joined(parts)


def _measured(
    logits: Tensor,
    labels: Tensor,
    indices: Indices,
    measure: Measure | None,
    owners: Sequence[int],
    weights: npt.NDArray[np.float64] | None = None,
) -> Evaluation:
    lanes = None
    if measure is not None:
        scores, truth = logits.float().cpu().numpy(), labels.cpu().numpy()
        lanes = _weighed(measure, scores, truth, owners, weights)
    return Evaluation(
        loss_sum=float(summed_loss(logits, labels)),
        correct=int(right_rows(logits, labels).sum()),
        examples=len(labels),
        rows=len(indices),
        lanes=lanes,
        lane_weight=float(len(indices) if weights is None else weights.sum()),
    )


def _weighed(
    measure: Measure,
    scores: npt.NDArray[np.float32],
    truth: npt.NDArray[np.generic],
    owners: Sequence[int],
    weights: npt.NDArray[np.float64] | None,
) -> npt.NDArray[np.float64]:
    """The lanes of a batch: what each example adds, times its weight."""
    if weights is None:
        return measure.tally(scores, truth, owners)
    lanes, rows_of = np.zeros(sum(kind.number for kind in measure.lanes)), np.asarray(owners)
    for place, weight in enumerate(weights):
        own = np.flatnonzero(rows_of == place)
        if len(own):
            lanes += weight * measure.tally(scores[own], truth[own], [0] * len(own))
    return lanes


def _answer_rows(model: nn.Module, batch: Batch, pad_id: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of the labelled tokens of a batch's answers."""
    sides = sides_of(batch, pad_id=pad_id).batch
    logits = model(input_ids=sides.input_ids, attention_mask=sides.attention_mask).logits[:, :-1]
    chosen = sides.labels[:, 1:] != IGNORED
    return logits[chosen], sides.labels[:, 1:][chosen]


def _compared(
    logits: Tensor,
    labels: Tensor,
    batch: Batch,
    pad_id: int,
    measure: Measure | None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Evaluation:
    """Of answers to be compared: the outputs are those of their labelled tokens."""
    rewards, there = rewards_of(row_losses(logits, labels), sides_of(batch, pad_id=pad_id), batch)
    examples, lanes = len(batch.indices), None
    if measure is not None:
        lanes = _weighed(measure, rewards.cpu().numpy(), there.cpu().numpy(), range(examples), weights)
    return Evaluation(
        loss_sum=float(preference_losses(rewards, there).sum()),
        correct=int(preferred_rows(rewards, there).sum()),
        examples=examples,
        rows=examples,
        lanes=lanes,
        lane_weight=float(examples if weights is None else weights.sum()),
    )


def _owners(split: SplitForward, batch: Batch) -> Sequence[int]:
    """Which example of the batch each row of outputs is of."""
    if not split.by_token:
        return range(len(batch.labels))
    owners: list[int] = (split.aligned(batch.labels) != IGNORED).nonzero()[:, 0].tolist()
    return owners
