"""Where the gradient of each example comes from: hooks, if they prove right, else the micro loop.

What DP-SGD's proof needs is not that a gradient is right, but that it is the example's own: a neighbour that comes or
goes must not change it by a bit, or the clipped sum moves by more than C. The micro loop has it by construction. The
hooks have it because a private step computes in fixed shapes (``fedpeft.tuning.slots``), where an example's slot and
what the other slots hold change nothing. Fails closed; the micro loop is exact and slower:

- hooks that differ from the micro loop on three made-up examples, at values where no gradient vanishes by
  construction, are not used;
- a shape in which two made-up examples do not have the same gradients, to the last bit, in all slots and among other
  neighbours is not used: its examples go through the model alone;
- at a state at which two made-up examples show either, all examples of the round go through the model alone: there
  the hooks may be exact in the sense of the proof, but they are not the gradient.

All is decided from public numbers and the shape alone, so that which examples go which way depends on no other. The
first two are properties of kernels and are checked once for an adapter and what is trained, the third in every round.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId
from fedpeft.methods.lora import LoraPart
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.batches import Batch, Indices, collate, lengths_of
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.per_sample_hooks import Hooked, NoBackEnd, micro_gradients
from fedpeft.tuning.slots import WIDTH, Shape, fixed_batch, pieces, shape_of
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["BackEnd", "GradientSource", "example_losses", "refuse_mixing"]

_log = logging.getLogger(__name__)

BackEnd = Literal["hooks", "micro"]

TOLERANCE = 1e-4
"""Largest difference between the back ends, relative to the norm of the example's gradient."""

STATE_SHAPE = Shape(width=24, full=False, slots=4)
"""In which each state is checked: small, for its cost comes with every round."""


@dataclass(slots=True)
class _Known:
    """What was found about one adapter and what is trained."""

    agrees: bool
    shapes: dict[Shape, bool]


_known: "WeakKeyDictionary[UnionAdapter, dict[frozenset[BlockId], _Known]]" = WeakKeyDictionary()


class _Views(NamedTuple):
    """One adapter's forward passes: in fixed shapes, and of one example alone."""

    fixed: SplitForward
    alone: SplitForward


class GradientSource:
    """Gradients of single examples at the adapter's values, from either back end.

    Args:
        union: the model with its adapter, at the state that the round begins with.
        blocks: what is trained.
        trained: their parameters by name.
        examples: the data set.
        cache: of these examples (``ActivationCache.for_private_training``).
        most: examples that may be in memory at once.
        checkpointing: see ``SplitForward``.

    Attributes:
        micro_shapes: shapes that are not trusted here.

    Guarantees:
        An example's gradient has the same bits whoever its neighbours are, at any state:
        tests/privacy/test_sensitivity.py::test_no_neighbour_changes_a_bit_of_an_example_s_gradient.
    """

    def __init__(
        self,
        union: UnionAdapter,
        blocks: frozenset[BlockId],
        trained: Mapping[str, nn.Parameter],
        examples: EncodedDataset,
        *,
        most: int,
        cache: HiddenSource | None = None,
        checkpointing: bool = False,
    ) -> None:
        self._views = _Views(
            fixed=SplitForward(union, checkpointing=checkpointing, every_position=True),
            alone=SplitForward(union, checkpointing=checkpointing),
        )
        self._examples, self._cache, self._most = examples, cache, most
        self._lengths = lengths_of(examples)
        self._parameters = list(trained.values())
        trusted = _trusted(union, blocks, self._views, trained, self._shapes())
        self._hooked = None if trusted is None else Hooked(union.model, trained)
        self.micro_shapes: frozenset[Shape] = frozenset() if trusted is None else self._shapes() - trusted

    @property
    def back_end(self) -> BackEnd:
        """Where gradients come from; "micro" as soon as one of the data's shapes needs it."""
        return "micro" if self._hooked is None or self.micro_shapes else "hooks"

    def gradients(self, indices: Indices) -> Iterator[list[Tensor]]:
        """Of these examples, in any order and as many parts as memory needs; a part has one (b, *shape) a parameter.

        An example that raises has a gradient of zero, and raises nothing: whether a step could be taken is no public
        fact. Its neighbours keep theirs: each is tried in the same shape, in which the others change nothing.
        """
        for shape, members in self._pieces(indices):
            try:
                found = self._together(members, shape)
            except Exception:
                _log.warning("%d examples could not be passed together; one by one", len(members), exc_info=True)
            else:
                yield found
                continue
            for index in members:
                try:
                    own = self._together(np.array([index]), shape)
                except Exception:
                    _log.warning("an example has no gradient and counts as zero", exc_info=True)
                else:
                    yield own

    def _pieces(self, indices: Indices) -> Iterator[tuple[Shape | None, Indices]]:
        """These examples by the shape in which they are computed; None: one alone, by the micro loop."""
        if self._hooked is None:
            yield from ((None, np.array([index])) for index in indices)
            return
        for shape, members in pieces(indices, self._lengths, most=self._most, longest=self._views.fixed.longest):
            if shape in self.micro_shapes:
                yield from ((None, np.array([index])) for index in members)
            else:
                yield shape, members

    def _together(self, members: Indices, shape: Shape | None) -> list[Tensor]:
        """Raises whatever an example of these may."""
        if shape is None or self._hooked is None:
            split = self._views.alone
            one = collate(self._examples, members, pad_id=split.pad_id, device=split.device)
            return micro_gradients(example_losses(split, one, self._cache)[0], self._parameters)
        split = self._views.fixed
        batch = fixed_batch(self._examples, members, shape, pad_id=split.pad_id, device=split.device)
        found = _hooked_gradients(self._hooked, split, batch, self._cache and _Slotted(self._cache))
        return [gradient[: len(members)] for gradient in found]

    def _shapes(self) -> frozenset[Shape]:
        longest, lengths = self._views.fixed.longest, set(self._lengths.tolist())
        return frozenset(shape_of(length, most=self._most, longest=longest) for length in lengths)


class _Slotted:
    """Cached activations in the slots of a fixed batch, zero in the empty ones."""

    def __init__(self, cache: HiddenSource) -> None:
        self._cache = cache

    def hidden(self, split: SplitForward, batch: Batch) -> Tensor:
        found = self._cache.hidden(split, batch)
        slots, width = batch.input_ids.shape
        return functional.pad(found, (0, 0, 0, width - found.shape[1], 0, slots - found.shape[0]))


def example_losses(split: SplitForward, batch: Batch, cache: HiddenSource | None) -> Tensor:
    """Each row's own loss, (b,): of its class, or the mean over its labelled tokens. Never a mean over the batch.

    A batch mean weighs an example by what its neighbours hold; under it the sensitivity was 4.6 C.
    """
    logits, labels = logits_of(split, batch, cache)
    losses = functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    if batch.labels.dim() == 1:
        return losses
    following = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED) != IGNORED  # (b, s), as SplitForward has it
    counts = following.sum(1)
    if split.every_position:
        return losses.view(following.shape).sum(1) / counts.clamp(min=1)
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return torch.zeros(len(counts), device=losses.device).index_add(0, row, losses) / counts.clamp(min=1)


def _hooked_gradients(hooked: Hooked, split: SplitForward, batch: Batch, cache: HiddenSource | None) -> list[Tensor]:
    with hooked.listening():
        losses = example_losses(split, batch, cache)
        if losses.shape != batch.input_ids.shape[:1]:
            raise NoBackEnd(f"Expected one loss an example, found {tuple(losses.shape)}.")
        if not losses.requires_grad:
            raise NoBackEnd("Expected a loss that depends on what is trained, found one that does not.")
        torch.autograd.backward([losses.sum()])
        return hooked.take(len(batch.input_ids))


def refuse_mixing(model: nn.Module) -> None:
    """Raises ConfigInvalid where a module mixes examples, or learns by more than gradients."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigInvalid(
                f"Expected a base in which examples do not meet, found BatchNorm at {path}: an example's gradient "
                "would depend on its neighbours, and no noise covers that. Use a base with LayerNorm or GroupNorm."
            )

    for path, module in model.named_modules():
        if isinstance(module, SteppedPart) and type(module) is not LoraPart:
            raise ConfigInvalid(
                f"Expected methods that learn by gradients alone, found {type(module).__name__} at {path}: what it "
                "measures or prunes in a step would be a release without noise. Take its method out of the run."
            )


def _trusted(
    union: UnionAdapter,
    blocks: frozenset[BlockId],
    views: _Views,
    trained: Mapping[str, nn.Parameter],
    shapes: frozenset[Shape],
) -> frozenset[Shape] | None:
    """Of these shapes, those in which the hooks may be used at the adapter's values; None: they may not at all."""
    every = _known.setdefault(union, {})
    if blocks not in every:
        with _away_from_the_start(trained):
            every[blocks] = _Known(agrees=_agrees(union, views, trained), shapes={})
    known = every[blocks]
    if not known.agrees or not _holds(union, views, STATE_SHAPE, trained, exact=True):
        return None
    new = sorted(shapes - known.shapes.keys())
    if new:
        with _away_from_the_start(trained):
            known.shapes |= {shape: _holds(union, views, shape, trained, exact=False) for shape in new}
    return frozenset(shape for shape in shapes if known.shapes[shape])


def _holds(
    union: UnionAdapter, views: _Views, shape: Shape, trained: Mapping[str, nn.Parameter], *, exact: bool
) -> bool:
    """Whether two made-up examples have the same gradients in all slots of this shape, and those of the micro loop.

    The second stands in every other slot, so each is among other neighbours and in other places than the first; then
    they change places. With ``exact``, for which every round pays, they do not, and the first is compared with the
    micro loop.
    """
    split, hooked = views.fixed, Hooked(union.model, trained)
    length = min(shape.length, split.longest)
    pair = _made_up(union, [length, length if shape.full else max(1, length - WIDTH // 2)])
    try:
        seen: list[Tensor | None] = [None, None]
        for first in range(1 if exact else min(2, shape.slots)):
            placed = (np.arange(shape.slots) + first) % 2
            batch = fixed_batch(pair, placed, shape, pad_id=split.pad_id, device=split.device)
            rows = _flat(_hooked_gradients(hooked, split, batch, None))  # (slots, P)
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


def _agrees(union: UnionAdapter, views: _Views, trained: Mapping[str, nn.Parameter]) -> bool:
    """Whether both back ends give the same gradients of three made-up examples."""
    parameters = list(trained.values())
    try:
        examples = _made_up(union, [5, 9, 12])
        everyone = collate(examples, np.arange(3), pad_id=views.fixed.pad_id, device=views.fixed.device)
        rows = _flat(_hooked_gradients(Hooked(union.model, trained), views.fixed, everyone, None))
        return all(_close(rows[index], _alone(views.alone, examples, index, parameters)) for index in range(3))
    except _FAILURES:
        return False


_FAILURES = (NoBackEnd, RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, KeyError)


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
    classes = int(config.num_labels)  # type: ignore[union-attr, arg-type]
    return EncodedDataset(input_ids=ids, labels=draw.integers(0, classes, len(ids)).astype(np.int64), truncated=0)
