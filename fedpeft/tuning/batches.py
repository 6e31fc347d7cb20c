"""The stream of batches: stateless, deterministic, bucketed by length.

Batch ``step`` of a stream is a pure function of (lengths, batch size, seed, step): any step can be asked for
without the ones before it, so a round takes up where the last one stopped and a resumed run sees what the
killed one would have seen. Every epoch takes every example once. An epoch's permutation is cut into
windows of a few batches; inside a window examples are sorted by length, so that a batch pads little, and
the batches are shuffled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.data.encode_texts import Contrast, Preference
from fedpeft.entropy import generator
from fedpeft.errors import DataInvalid

__all__ = [
    "Batch",
    "BatchStream",
    "Indices",
    "collate",
    "evaluation_stream",
    "lengths_of",
    "padded",
    "padded_labels",
    "padded_segments",
    "predictions_of",
    "training_stream",
]

Indices = npt.NDArray[np.int64]
EVALUATION_SEED = 0
EVALUATION_WINDOW = 4  # of a few examples at random, most batches of the first epoch hold some: they stay small


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded examples.

    Args:
        indices: which examples of the data set, (b,).
        input_ids: (b, s) int64.
        attention_mask: (b, s) int64, 1 on tokens; None when nothing is padded.
        labels: (b,) class indices or numbers, (b, outputs) of 0 and 1, or (b, s) with ``IGNORED`` where nothing is
            learnt.
        segments: (b, s) int64, 1 on the tokens of a pair's second text; None without pairs.
        preference: of examples that hold answers to be compared, with these examples' reference; None for other tasks.
    """

    indices: Indices
    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor
    segments: Tensor | None = None
    preference: Preference | None = None
    contrast: Contrast | None = None

    @property
    def holds_several(self) -> bool:
        """Whether a row is several texts, which a model sees one by one (``fedpeft.tuning.several.sides``)."""
        return self.preference is not None or self.contrast is not None


class BatchStream:
    """The endless stream over one data set.

    Args:
        lengths: tokens of each example, (n,).
        batch_size: examples per batch; the last batches of an epoch may hold fewer.
        seed: fully determines the stream.
        window: batches that are sorted by length together. More pads less and mixes less.

    Raises:
        DataInvalid: no example.
    """

    def __init__(self, lengths: Indices, *, batch_size: int, seed: int, window: int = 16) -> None:
        if len(lengths) == 0:
            raise DataInvalid("Expected at least one example to train or evaluate on, found none.")
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._window = window
        self._latest: tuple[int, Indices, list[Indices]] | None = None
        self.steps_per_epoch = len(self.epoch(0))

    def batch(self, step: int) -> Indices:
        """The examples of one step, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[position]

    def epoch(self, epoch: int) -> list[Indices]:
        """The batches of one epoch."""
        return self._drawn(epoch)[1]

    def order(self, epoch: int) -> Indices:
        """The epoch's permutation, (n,), before it is cut into batches: any prefix is a random sample."""
        return self._drawn(epoch)[0]

    def _drawn(self, epoch: int) -> tuple[Indices, list[Indices]]:
        if self._latest is None or self._latest[0] != epoch:
            draw = generator(self._seed, "batches", epoch)
            order = draw.permutation(len(self._lengths)).astype(np.int64)
            batches: list[Indices] = []
            for window in bucketed(order, self._lengths, batch_size=self._batch_size, window=self._window):
                batches += [window[i] for i in draw.permutation(len(window))]
            self._latest = (epoch, order, batches)
        return self._latest[1:]


def training_stream(examples: EncodedDataset, *, batch_size: int, seed: int) -> BatchStream:
    """The stream that ``train`` follows."""
    return BatchStream(lengths_of(examples), batch_size=batch_size, seed=seed)


def evaluation_stream(examples: EncodedDataset, *, batch_size: int) -> BatchStream:
    """The stream whose epoch 0 ``evaluate`` takes; the same in every run."""
    return BatchStream(lengths_of(examples), batch_size=batch_size, seed=EVALUATION_SEED, window=EVALUATION_WINDOW)


def bucketed(order: Indices, lengths: Indices, *, batch_size: int, window: int) -> list[list[Indices]]:
    """``order`` cut into windows of ``window`` batches, each sorted by length and cut into even batches."""
    windows: list[list[Indices]] = []
    for start in range(0, len(order), window * batch_size):
        chunk = order[start : start + window * batch_size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        windows.append(np.array_split(chunk, -(-len(chunk) // batch_size)))
    return windows


def lengths_of(examples: EncodedDataset) -> Indices:
    """Tokens of each example, (n,)."""
    return np.fromiter((len(ids) for ids in examples.input_ids), np.int64, len(examples))


def predictions_of(examples: EncodedDataset, index: int) -> int:
    """How many predictions an example is scored on: one, its tagged words, or its labelled tokens after the first."""
    labels = examples.labels
    if isinstance(labels, np.ndarray) or examples.preference is not None:
        return 1
    return int((labels[index][0 if examples.of_tokens else 1 :] != IGNORED).sum())


def collate(examples: EncodedDataset, indices: Indices, *, pad_id: int, device: torch.device) -> Batch:
    """Pad these examples to the longest of them, on the right."""
    rows = [examples.input_ids[i] for i in indices]
    input_ids, mask = padded(rows, pad_id), padded([np.ones(len(row), np.int64) for row in rows], 0)
    width = input_ids.shape[1]
    return Batch(
        indices=indices,
        input_ids=torch.from_numpy(input_ids).to(device),
        attention_mask=None if mask.all() else torch.from_numpy(mask).to(device),
        labels=torch.from_numpy(padded_labels(examples, indices, len(indices), width)).to(device),
        segments=padded_segments(examples, indices, len(indices), width, device),
        preference=_of(examples.preference, indices),
        contrast=examples.contrast,
    )


def padded(
    rows: Sequence[npt.ArrayLike], fill: int, *, shape: tuple[int, int] | None = None, left: bool = False
) -> npt.NDArray[np.int64]:
    """Rows of unequal length as one array.

    Args:
        rows: whole numbers.
        fill: what stands behind a row, and in rows that there are none for.
        shape: of the array; None: as many as there are, of the longest's width.
        left: the filling stands before a row.
    """
    found = [np.asarray(row, np.int64) for row in rows]
    whole = np.full(shape or (len(found), max(map(len, found))), fill, np.int64)
    for line, row in zip(whole, found, strict=False):
        line[len(line) - len(row) if left else 0 :][: len(row)] = row
    return whole


def _of(preference: Preference | None, indices: Indices) -> Preference | None:
    if preference is None or preference.reference is None:
        return preference
    return replace(preference, reference=preference.reference[indices])


def padded_segments(
    examples: EncodedDataset, indices: Indices, rows: int, width: int, device: torch.device
) -> Tensor | None:
    """(rows, width), 0 on padding and in empty rows; None where no example has any."""
    if examples.segments is None:
        return None
    segments = padded([examples.segments[i] for i in indices], 0, shape=(rows, width))
    return torch.from_numpy(segments).to(device)


def padded_labels(
    examples: EncodedDataset, indices: Indices, rows: int, width: int
) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
    """The targets of so many rows, of which the last may be empty: 0 there, or ``IGNORED`` where they are of tokens."""
    labels = examples.labels
    if isinstance(labels, np.ndarray):
        whole = np.zeros((rows, *labels.shape[1:]), labels.dtype)
        whole[: len(indices)] = labels[indices]
        return whole
    return padded([labels[i] for i in indices], IGNORED, shape=(rows, width))
