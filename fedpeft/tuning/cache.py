"""The cache of activations below the first adapted layer.

With adapters in the top layers only, the hidden states that enter them never change in a run: compute each
example's once, afterwards run the top layers alone. The cache is equivalent to the raw data: it lies in a
file without a name on the device's own disk (``DiskRows``) and is gone with the run. Not in memory: it is larger than
the model, and a step reads so little of it that the disk costs nothing.

Invariant: what an example's cached activation is does not depend on the order in which examples were asked
for. GEMMs round differently in batches of different shape, so an example is always computed in its home
batch, the one it has in epoch 0 of the stream; and which batches are kept is fixed by ``max_bytes`` before
the first. A resumed run is therefore bit-identical although its cache starts empty. For private steps even the home
batch is too much: there an activation is computed in fixed shapes (``fedpeft.tuning.slots``), and depends on its own
example alone.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from fedpeft.data.encode import EncodedDataset
from fedpeft.tuning.batches import Batch, BatchStream, Indices, collate, evaluation_stream, lengths_of, training_stream
from fedpeft.tuning.disk_rows import DiskRows
from fedpeft.tuning.slots import fixed_batch, pieces
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["ActivationCache", "HiddenSource", "JoinedCaches", "logits_of"]

_BYTES_A_VALUE = 4
_NOT_KEPT = -1


class HiddenSource(Protocol):
    """Where the input of the first adapted layer comes from."""

    def hidden(self, split: SplitForward, batch: Batch) -> Tensor:
        """The input of layer ``split.first_layer`` for a batch, (b, s, hidden_size); padding is 0."""
        ...


class ActivationCache:
    """Cached activations of one data set under one base model and one cut.

    Args:
        examples: the data set.
        stream: whose epoch 0 says each example's home batch.
        max_bytes: at most so much is kept; what does not fit is computed anew each time.
        most: for private steps: examples at once, each in a shape of its own; None: in home batches.
    """

    def __init__(
        self, examples: EncodedDataset, stream: BatchStream, *, max_bytes: int, most: int | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self._most = most
        self._examples = examples
        self._lengths = lengths_of(examples)
        self._homes = stream.epoch(0)
        self._home_of = np.empty(len(examples), np.int64)
        for home, indices in enumerate(self._homes):
            self._home_of[indices] = home
        self._filled = np.zeros(len(examples), np.bool_)
        self._place = np.full(len(examples), _NOT_KEPT, np.int64)
        self._kept: DiskRows | None = None
        self._lock = threading.Lock()

    @classmethod
    def for_training(cls, examples: EncodedDataset, *, batch_size: int, seed: int, max_bytes: int) -> "ActivationCache":
        """A cache for ``train`` with this batch size and seed: no example is computed before it is needed."""
        return cls(examples, training_stream(examples, batch_size=batch_size, seed=seed), max_bytes=max_bytes)

    @classmethod
    def for_private_training(
        cls, examples: EncodedDataset, *, batch_size: int, seed: int, max_bytes: int
    ) -> "ActivationCache":
        """A cache for ``train_privately``: what it gives for an example does not depend on any other.

        Guarantees:
            tests/privacy/test_sensitivity.py::test_a_cached_activation_does_not_depend_on_other_examples.
        """
        stream = training_stream(examples, batch_size=batch_size, seed=seed)
        return cls(examples, stream, max_bytes=max_bytes, most=batch_size)

    @classmethod
    def for_evaluation(cls, examples: EncodedDataset, *, batch_size: int, max_bytes: int) -> "ActivationCache":
        """A cache for ``evaluate`` with this batch size."""
        return cls(examples, evaluation_stream(examples, batch_size=batch_size), max_bytes=max_bytes)

    @property
    def size_bytes(self) -> int:
        """What the kept activations take now."""
        width = 0 if self._kept is None else self._kept.width
        return int(self._lengths[self._filled].sum()) * width * _BYTES_A_VALUE

    def __len__(self) -> int:
        """Examples of the data set."""
        return len(self._examples)

    def hidden(self, split: SplitForward, batch: Batch) -> Tensor:
        """See ``HiddenSource``; for batches of this data set."""
        return _padded(self.rows(split, batch.indices), split)

    def rows(self, split: SplitForward, indices: Indices) -> list[Tensor]:
        """The input of layer ``split.first_layer`` for each of these examples, (its tokens, hidden_size).

        Raises:
            ResourceMissing: the disk has no room for what is to be kept.
        """
        kept = self._fill(split, indices)
        passing = indices[self._place[indices] == _NOT_KEPT]
        fresh = self._compute(split, passing) if len(passing) else {}
        return [
            fresh[i] if i in fresh else kept.read(int(self._place[i]), int(self._lengths[i])) for i in map(int, indices)
        ]

    def _fill(self, split: SplitForward, indices: Indices) -> DiskRows:
        """Computes what is to be kept of these and is not yet; several threads may ask at once."""
        with self._lock:
            if self._kept is None:
                self._kept = self._reserve(split)
            missing = indices[~self._filled[indices]]
            for home in np.unique(self._home_of[missing[self._place[missing] != _NOT_KEPT]]):
                for i, row in self._compute(split, self._homes[home]).items():
                    self._kept.write(int(self._place[i]), row)
                self._filled[self._homes[home]] = True
            return self._kept

    def _reserve(self, split: SplitForward) -> DiskRows:
        """Decides which home batches are kept: the first that fit."""
        token_bytes = split.hidden_size * _BYTES_A_VALUE
        sizes = np.array([int(self._lengths[home].sum()) for home in self._homes])
        fitting = int(np.searchsorted(np.cumsum(sizes) * token_bytes, self.max_bytes, side="right"))
        order = np.concatenate([np.empty(0, np.int64), *self._homes[:fitting]])
        self._place[order] = np.cumsum(self._lengths[order]) - self._lengths[order]
        return DiskRows(int(self._lengths[order].sum()), split.hidden_size)

    def _compute(self, split: SplitForward, indices: Indices) -> dict[int, Tensor]:
        if self._most is not None:
            rows: dict[int, Tensor] = {}
            for shape, members in pieces(indices, self._lengths, most=self._most, longest=split.longest):
                batch = fixed_batch(self._examples, members, shape, pad_id=split.pad_id, device=split.device)
                rows |= self._rows_of(split, batch)
            return rows
        batch = collate(self._examples, indices, pad_id=split.pad_id, device=split.device)
        return self._rows_of(split, batch)

    def _rows_of(self, split: SplitForward, batch: Batch) -> dict[int, Tensor]:
        hidden = split.hidden_below(batch).cpu()
        return {int(i): hidden[line, : self._lengths[i]] for line, i in enumerate(batch.indices)}


class JoinedCaches:
    """The caches of several data sets as one, for the data set that holds them all, one after the other.

    Args:
        parts: in the order of their data sets.
    """

    def __init__(self, parts: Sequence[ActivationCache]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def hidden(self, split: SplitForward, batch: Batch) -> Tensor:
        """See ``HiddenSource``; for batches of the joined data set."""
        part_of = np.searchsorted(self._starts, batch.indices, side="right") - 1
        rows: dict[int, Tensor] = {}
        for part in np.unique(part_of):
            chosen = batch.indices[part_of == part]
            found = self._parts[part].rows(split, chosen - self._starts[part])
            rows.update(zip(map(int, chosen), found, strict=True))
        return _padded([rows[int(i)] for i in batch.indices], split)


def _padded(rows: list[Tensor], split: SplitForward) -> Tensor:
    """(b, s, hidden_size), 0 after the end of each row."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(split.device)


def logits_of(split: SplitForward, batch: Batch, cache: HiddenSource | None) -> tuple[Tensor, Tensor]:
    """Logits and labels of a batch (``SplitForward.logits``), layers below the split from the cache if any."""
    if cache is None or split.first_layer == 0:
        return split.logits(batch)
    return split.logits_above(batch, cache.hidden(split, batch))
