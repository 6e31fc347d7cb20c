"""Held-out texts that belong together, compared in groups of about one size.

Loss and recall both depend on how many texts an anchor is compared with, so the groups
(at most ``fedpeft.tasks.embeddings.GROUP``, and more than half of it where there are as many examples) depend on the
number of examples alone, whatever a machine computes at once.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import RunFailed
from fedpeft.tasks.embeddings import GROUP
from fedpeft.tuning.batches import Indices, bucketed, evaluation_stream, lengths_of
from fedpeft.tuning.several.contrast import candidates_of, cosines

__all__ = ["cosines_by_group", "nearest_of"]


def cosines_by_group(
    examples: EncodedDataset, vectors: Callable[[Indices], Tensor], *, limit: int, batch_size: int
) -> Iterator[tuple[Indices, float, Tensor]]:
    """Each group, the scale of its loss, and the cosines of its anchors with its texts, (b, c) on the CPU.

    Args:
        examples: texts that belong together.
        vectors: of all texts of these examples, in order, (m, h).
        limit: how many examples to take, always the same ones; 0 takes all.
        batch_size: examples that pass through the model at once.
    """
    if examples.contrast is None:
        raise RunFailed("Expected texts that belong together, found examples of another task.")
    order = evaluation_stream(examples, batch_size=batch_size).order(0)[: limit or None]
    for group in np.array_split(order, -(-len(order) // GROUP)):
        found = _vectors_of(group, examples, vectors, batch_size)
        yield group, examples.contrast.scale, cosines(found, candidates_of(examples, group)).cpu()


def nearest_of(found: Tensor) -> Tensor:
    """The cosines of each anchor with its own text and with the nearest other one, (b, 2); -1 where there is none."""
    own = torch.eye(*found.shape, dtype=torch.bool)
    others = found.masked_fill(own, float("-inf")).amax(1).clamp(min=-1.0)
    return torch.stack([found.diagonal(), others], dim=1)


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
