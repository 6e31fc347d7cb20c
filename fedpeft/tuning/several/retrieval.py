"""Loss and recall of texts that belong together, on held-out examples.

Both depend on how many texts an anchor is compared with, so examples are compared in groups of a constant size
(``fedpeft.tasks.embed.GROUP``), always the same ones, whatever a machine computes at once.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import RunFailed
from fedpeft.tasks import Measure
from fedpeft.tasks.embed import GROUP
from fedpeft.tuning.batches import Indices, bucketed, evaluation_stream, lengths_of
from fedpeft.tuning.evaluation import Evaluation
from fedpeft.tuning.several.contrast import candidates_of, contrastive_losses, cosines

__all__ = ["retrieval"]


@torch.no_grad()
def retrieval(
    examples: EncodedDataset,
    vectors: Callable[[Indices], Tensor],
    *,
    limit: int,
    batch_size: int,
    measure: Measure | None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Evaluation:
    """As ``fedpeft.tuning.evaluate.evaluate``.

    Args:
        examples: texts that belong together.
        vectors: of all texts of these examples, in order, (m, h).
        limit, batch_size, measure, weights: see there.
    """
    if examples.contrast is None:
        raise RunFailed("Expected texts that belong together, found examples of another task.")
    # The batch size decides where windows of an order end, never the order itself.
    order = evaluation_stream(examples, batch_size=batch_size).order(0)[: limit or None]
    parts = []
    for group in np.array_split(order, -(-len(order) // GROUP)):
        found = cosines(_vectors_of(group, examples, vectors, batch_size), candidates_of(examples, group)).cpu()
        losses = contrastive_losses(found, examples.contrast.scale)
        nearest = torch.stack([found.diagonal(), _others(found)], dim=1).numpy()  # (b, 2)
        own = np.ones(len(group)) if weights is None else weights[group]
        lanes = None
        if measure is not None:
            each = [weight * measure.tally(nearest[[i]], nearest[[i]], [0]) for i, weight in enumerate(own)]
            lanes = np.sum(each, axis=0)
        parts.append(
            Evaluation(
                loss_sum=float(losses.sum()),
                correct=0,
                examples=len(group),
                rows=len(group),
                lanes=lanes,
                lane_weight=float(own.sum()),
            )
        )
    return Evaluation.joined(parts)


def _others(found: Tensor) -> Tensor:
    """The cosine with the nearest text that is not the own one, (b,); -1 where there is none."""
    own = torch.eye(*found.shape, dtype=torch.bool)
    return found.masked_fill(own, float("-inf")).amax(1).clamp(min=-1.0)


def _vectors_of(
    group: Indices, examples: EncodedDataset, vectors: Callable[[Indices], Tensor], batch_size: int
) -> Tensor:
    """In the order of the group; computed alike in length, so that hardly anything is padding."""
    texts = np.array([int(examples.segments[i].max()) + 1 for i in group]) if examples.segments else np.ones(0, int)
    starts = np.cumsum(texts) - texts
    (batches,) = bucketed(np.arange(len(group)), lengths_of(examples)[group], batch_size=batch_size, window=len(group))
    parts = [vectors(group[places]) for places in batches]
    where = np.concatenate([starts[i] + np.arange(texts[i]) for places in batches for i in places])
    whole = torch.cat(parts)
    return whole[torch.from_numpy(np.argsort(where)).to(whole.device)]
