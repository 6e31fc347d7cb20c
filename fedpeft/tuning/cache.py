"""The cache of activations below the first adapted layer.

With adapters in the top layers only, the hidden states that enter them never change in a run: compute each
example's once, afterwards run the top layers alone. The cache is equivalent to the raw data: it lives in
the device's memory and dies with the run.

Invariant: what an example's cached activation is does not depend on the order in which examples were asked
for. GEMMs round differently in batches of different shape, so an example is always computed in its home
batch, the one it has in epoch 0 of the stream; and which batches are kept is fixed by ``max_bytes`` before
the first. A resumed run is therefore bit-identical although its cache starts empty.
"""

import numpy as np
from torch import Tensor, nn

from fedpeft.data.encode import EncodedDataset
from fedpeft.tuning.batches import Batch, BatchStream, Indices, collate, evaluation_stream, lengths_of, training_stream
from fedpeft.tuning.stages import Stages

__all__ = ["ActivationCache", "logits_of"]

_BYTES_A_VALUE = 4


class ActivationCache:
    """Cached activations of one data set under one base model and one cut.

    Args:
        examples: the data set.
        stream: whose epoch 0 says each example's home batch.
        max_bytes: at most so much is kept; what does not fit is computed anew each time.
    """

    def __init__(self, examples: EncodedDataset, stream: BatchStream, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._examples = examples
        self._homes = stream.epoch(0)
        self._home_of = np.empty(len(examples), np.int64)
        for home, indices in enumerate(self._homes):
            self._home_of[indices] = home
        self._kept_homes: int | None = None
        self._store: dict[int, Tensor] = {}

    @classmethod
    def for_training(cls, examples: EncodedDataset, *, batch_size: int, seed: int, max_bytes: int) -> "ActivationCache":
        """A cache for ``train`` with this batch size and seed: no example is computed before it is needed."""
        return cls(examples, training_stream(examples, batch_size=batch_size, seed=seed), max_bytes=max_bytes)

    @classmethod
    def for_evaluation(cls, examples: EncodedDataset, *, batch_size: int, max_bytes: int) -> "ActivationCache":
        """A cache for ``evaluate`` with this batch size."""
        return cls(examples, evaluation_stream(examples, batch_size=batch_size), max_bytes=max_bytes)

    @property
    def size_bytes(self) -> int:
        """What the kept activations take now."""
        return sum(hidden.numel() * hidden.element_size() for hidden in self._store.values())

    def hidden(self, stages: Stages, batch: Batch) -> Tensor:
        """The input of layer ``stages.first_layer`` for a batch of this data set, (b, s, hidden_size); padding is 0."""
        if self._kept_homes is None:
            self._kept_homes = self._homes_that_fit(stages.hidden_size)
        missing = [int(i) for i in batch.indices if int(i) not in self._store]
        for home in sorted({int(self._home_of[i]) for i in missing}):
            if home < self._kept_homes:
                self._store.update(self._compute(stages, self._homes[home]))
        passing = [i for i in missing if i not in self._store]
        fresh = self._compute(stages, np.array(passing, np.int64)) if passing else {}
        rows = [fresh[i] if i in fresh else self._store[i] for i in map(int, batch.indices)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _homes_that_fit(self, hidden_size: int) -> int:
        lengths = lengths_of(self._examples)
        sizes = [int(lengths[home].sum()) * hidden_size * _BYTES_A_VALUE for home in self._homes]
        return int(np.searchsorted(np.cumsum(sizes), self.max_bytes, side="right"))

    def _compute(self, stages: Stages, indices: Indices) -> dict[int, Tensor]:
        batch = collate(self._examples, indices, pad_id=stages.pad_id, device=stages.device)
        hidden = stages.hidden_below(batch)
        return {int(i): hidden[line, : len(self._examples.input_ids[i])].clone() for line, i in enumerate(indices)}


def logits_of(stages: Stages, batch: Batch, cache: ActivationCache | None) -> tuple[Tensor, Tensor]:
    """Logits and labels of a batch (``Stages.logits``), the layers below the cut from the cache if there is one."""
    if cache is None or stages.first_layer == 0:
        return stages.logits(batch)
    return stages.logits_above(batch, cache.hidden(stages, batch))
