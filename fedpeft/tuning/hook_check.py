"""Whether the hooks may be believed: their gradients of made-up examples against one backward pass each."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.base.architecture import form_of
from fedpeft.catalogue.opacus import Engine
from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.methods.union import UnionAdapter
from fedpeft.tasks.form import MULTI, NUMBER, TAGS
from fedpeft.tuning.batches import Batch, collate
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.opacus.hooks import OpacusHooked
from fedpeft.tuning.per_sample_hooks import Hooked, NoBackEnd, PerExample, micro_gradients
from fedpeft.tuning.preference.losses import preference_losses, rewards_of
from fedpeft.tuning.row_loss import row_losses
from fedpeft.tuning.several.sides import sides_of
from fedpeft.tuning.slots import WIDTH, Shape, fixed_batch
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["Views", "example_losses", "hooked_gradients", "hooks_of", "trusted_shapes"]

TOLERANCE = 1e-4
"""Largest difference between hooks and micro loop, relative to the norm of the example's gradient."""

STATE_SHAPE = Shape(width=24, full=False, slots=4)
"""In which each state is checked: small, for its cost comes with every round."""

_FAILURES = (NoBackEnd, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ImportError)
"""AttributeError and ImportError are Opacus's: of a module that it takes for another, of a torch that it is not for."""


@dataclass(slots=True)
class _Known:
    """What was found about one adapter and what is trained."""

    agrees: bool
    shapes: dict[Shape, bool]


_known: "WeakKeyDictionary[UnionAdapter, dict[tuple[Engine, frozenset[BlockId]], _Known]]" = WeakKeyDictionary()


class Views(NamedTuple):
    """One adapter's forward passes: in fixed shapes, and of one example alone."""

    fixed: SplitForward
    alone: SplitForward


def example_losses(split: SplitForward, batch: Batch, cache: HiddenSource | None) -> Tensor:
    """Each example's own loss, (b,): of its target, or the mean over its labelled tokens. Never a mean over the batch.

    A batch mean weighs an example by what its neighbours hold; under it the sensitivity was 4.6 C.
    """
    logits, labels = logits_of(split, batch, cache)
    losses = row_losses(logits, labels)
    if batch.preference is not None:
        return preference_losses(*rewards_of(losses, sides_of(batch, pad_id=split.pad_id), batch))
    if not split.by_token:
        return losses
    labelled = split.aligned(batch.labels) != IGNORED  # (b, s)
    counts = labelled.sum(1)
    if split.every_position:
        return losses.view(labelled.shape).sum(1) / counts.clamp(min=1)
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return torch.zeros(len(counts), device=losses.device).index_add(0, row, losses) / counts.clamp(min=1)


def hooks_of(engine: Engine, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> PerExample:
    """The hooks of an engine.

    Raises:
        NoBackEnd: it cannot have the gradients of these parameters.
    """
    return OpacusHooked(model, trained) if engine == "opacus" else Hooked(model, trained)


def hooked_gradients(hooked: PerExample, split: SplitForward, batch: Batch, cache: HiddenSource | None) -> list[Tensor]:
    """Each row's gradient of each trained parameter, by hooks."""
    with hooked.listening():
        losses = example_losses(split, batch, cache)
        if losses.shape != batch.input_ids.shape[:1]:
            raise NoBackEnd(f"Expected one loss per example, found {tuple(losses.shape)}.")
        if not losses.requires_grad:
            raise NoBackEnd("Expected a loss that depends on what is trained, found one that does not.")
        hooked.backward(losses.sum())
        return hooked.take(len(batch.input_ids))


def trusted_shapes(
    engine: Engine,
    union: UnionAdapter,
    blocks: frozenset[BlockId],
    views: Views,
    trained: Mapping[str, nn.Parameter],
    shapes: frozenset[Shape],
) -> frozenset[Shape] | None:
    """Of these shapes, those in which an engine's hooks may be used at the adapter's values; None: in none."""
    every, key = _known.setdefault(union, {}), (engine, blocks)
    if key not in every:
        with _away_from_the_start(trained):
            every[key] = _Known(agrees=_agrees(engine, union, views, trained), shapes={})
    known = every[key]
    if not known.agrees or not _holds(engine, union, views, STATE_SHAPE, trained, exact=True):
        return None
    new = sorted(shapes - known.shapes.keys())
    if new:
        with _away_from_the_start(trained):
            known.shapes |= {shape: _holds(engine, union, views, shape, trained, exact=False) for shape in new}
    return frozenset(shape for shape in shapes if known.shapes[shape])


def _holds(
    engine: Engine,
    union: UnionAdapter,
    views: Views,
    shape: Shape,
    trained: Mapping[str, nn.Parameter],
    *,
    exact: bool,
) -> bool:
    """Whether two made-up examples have the same gradients in all slots of this shape, and those of the micro loop.

    The second stands in every other slot, so each is among other neighbours and in other places than the first; then
    they change places. With ``exact``, for which every round pays, they do not, and the first is compared with the
    micro loop.
    """
    split = views.fixed
    length = min(shape.length, split.longest)
    pair = _made_up(union, [length, length if shape.full else max(1, length - WIDTH // 2)])
    try:
        hooked, seen = hooks_of(engine, union.model, trained), list[Tensor | None]([None, None])
        for first in range(1 if exact else min(2, shape.slots)):
            placed = (np.arange(shape.slots) + first) % 2
            batch = fixed_batch(pair, placed, shape, pad_id=split.pad_id, device=split.device)
            rows = _flat(hooked_gradients(hooked, split, batch, None))  # (slots, P)
            for own, row in zip(placed.tolist(), rows, strict=True):
                known = row if seen[own] is None else seen[own]
                seen[own] = known
                if known is None or not torch.equal(row, known):
                    return False
        first_row = seen[0]
        if exact and first_row is not None:
            return _close(first_row, _alone(views.alone, pair, 0, list(trained.values())))
        return True
    except _FAILURES:
        return False  # whatever went wrong there: the micro loop is exact


@contextmanager
def _away_from_the_start(trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within it the values are others: U and B begin at zero, and would hide a wrong gradient of D and A."""
    draw = generator(0, "self-check")
    before = [parameter.detach().clone() for parameter in trained.values()]
    try:
        with torch.no_grad():
            for parameter in trained.values():
                step = 0.05 * draw.standard_normal(tuple(parameter.shape))
                parameter.add_(torch.from_numpy(np.asarray(step, np.float32)).to(parameter.device))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained.values(), before, strict=True):
                parameter.copy_(value)


def _agrees(engine: Engine, union: UnionAdapter, views: Views, trained: Mapping[str, nn.Parameter]) -> bool:
    """Whether an engine and the micro loop give the same gradients of three made-up examples."""
    parameters = list(trained.values())
    try:
        examples = _made_up(union, [5, 9, 12])
        everyone = collate(examples, np.arange(3), pad_id=views.fixed.pad_id, device=views.fixed.device)
        rows = _flat(hooked_gradients(hooks_of(engine, union.model, trained), views.fixed, everyone, None))
        return all(_close(rows[index], _alone(views.alone, examples, index, parameters)) for index in range(3))
    except _FAILURES:
        return False


def _alone(split: SplitForward, examples: EncodedDataset, index: int, parameters: list[nn.Parameter]) -> Tensor:
    one = collate(examples, np.array([index]), pad_id=split.pad_id, device=split.device)
    return _flat(micro_gradients(example_losses(split, one, None)[0], parameters))[0]


def _flat(gradients: list[Tensor]) -> Tensor:
    """(b, P)."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def _close(found: Tensor, exact: Tensor) -> bool:
    off, norm = (float(torch.linalg.vector_norm(one, dtype=torch.float64)) for one in (found - exact, exact))
    return off <= TOLERANCE * norm and math.isfinite(norm)


def _made_up(union: UnionAdapter, lengths: list[int]) -> EncodedDataset:
    """Examples of these lengths, of no one's data."""
    draw, config = generator(0, "made-up examples", *lengths), union.model.config
    ids = tuple(draw.integers(1, int(config.vocab_size), size).astype(np.int32) for size in lengths)  # type: ignore[union-attr, arg-type]
    if not union.anatomy.head:
        labels = tuple(np.where(np.arange(len(row)) < 2, IGNORED, row).astype(np.int64) for row in ids)
        return EncodedDataset(input_ids=ids, labels=labels, truncated=0)
    outputs = int(config.num_labels)  # type: ignore[union-attr, arg-type]
    if form_of(union.model) == TAGS:
        tags = tuple(draw.integers(0, outputs, len(row)).astype(np.int64) for row in ids)
        return EncodedDataset(input_ids=ids, labels=tags, truncated=0, of_tokens=True)
    classes = draw.integers(0, outputs, len(ids)).astype(np.int64)
    problem = getattr(config, "problem_type", None)
    if problem == NUMBER:
        return EncodedDataset(input_ids=ids, labels=classes.astype(np.float32), truncated=0)
    if problem == MULTI:
        each = draw.integers(0, 2, (len(ids), outputs)).astype(np.float32)
        return EncodedDataset(input_ids=ids, labels=each, truncated=0)
    return EncodedDataset(input_ids=ids, labels=classes, truncated=0)
