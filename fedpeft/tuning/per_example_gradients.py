"""Where the gradient of each example comes from: an engine's hooks, if they prove right, else the micro loop.

What DP-SGD's proof needs is not that a gradient is right, but that it is the example's own: a neighbour that comes or
goes must not change it by a bit, or the clipped sum moves by more than C. The micro loop has it by construction. The
hooks have it because a private step computes in fixed shapes (``fedpeft.tuning.slots``), where an example's slot and
what the other slots hold change nothing. One check stands before Opacus's hooks and ours. Fails closed; the micro loop
is exact and slower:

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
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.catalogue.opacus import Engine
from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId
from fedpeft.methods.lora import LoraPart
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.batches import Batch, Indices, collate, lengths_of
from fedpeft.tuning.cache import HiddenSource
from fedpeft.tuning.hook_check import Views, example_losses, hooked_gradients, hooks_of, trusted_shapes
from fedpeft.tuning.per_sample_hooks import micro_gradients
from fedpeft.tuning.slots import Shape, fixed_batch, pieces, shape_of
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["BackEnd", "GradientSource", "refuse_mixing"]

_log = logging.getLogger(__name__)

BackEnd = Literal["opacus", "hooks", "micro"]
"""Opacus's hooks, our own, or one example at a time."""


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
        engine: whose hooks.

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
        engine: Engine = "fedpeft",
    ) -> None:
        self._engine = engine
        self._views = Views(
            fixed=SplitForward(union, checkpointing=checkpointing, every_position=True),
            alone=SplitForward(union, checkpointing=checkpointing),
        )
        self._examples, self._cache, self._most = examples, cache, most
        self._lengths = lengths_of(examples)
        self._parameters = list(trained.values())
        trusted = None
        if examples.preference is None:  # an example of two sequences has two rows in the model: the hooks count rows
            trusted = trusted_shapes(engine, union, blocks, self._views, trained, self._shapes())
        self._hooked = None if trusted is None else hooks_of(engine, union.model, trained)
        self.micro_shapes: frozenset[Shape] = frozenset() if trusted is None else self._shapes() - trusted

    @property
    def back_end(self) -> BackEnd:
        """Where gradients come from; "micro" as soon as one of the data's shapes needs it."""
        if self._hooked is None or self.micro_shapes:
            return "micro"
        return "opacus" if self._engine == "opacus" else "hooks"

    def gradients(self, indices: Indices) -> Iterator[list[Tensor]]:
        """As ``of``, without saying whose."""
        return (part for _, part in self.of(indices))

    def of(self, indices: Indices) -> Iterator[tuple[Indices, list[Tensor]]]:
        """Of these examples, in as many parts as memory needs: which, and one (b, *shape) a parameter.

        Which of two examples comes first depends on those two alone. An example that raises has a gradient of zero, and
        raises nothing: whether a step could be taken is no public fact. Its neighbours keep
        theirs: each is tried in the same shape, in which the others change nothing.
        """
        for shape, members in self._pieces(indices):
            try:
                found = self._together(members, shape)
            except Exception:
                _log.warning("%d examples could not be passed together; one by one", len(members), exc_info=True)
            else:
                yield members, found
                continue
            for index in members:
                try:
                    own = self._together(np.array([index]), shape)
                except Exception:
                    _log.warning("an example has no gradient and counts as zero", exc_info=True)
                else:
                    yield np.array([index]), own

    def _pieces(self, indices: Indices) -> Iterator[tuple[Shape | None, Indices]]:
        """These examples by the shape in which they are computed; None: one alone, by the micro loop."""
        if self._hooked is None:
            yield from ((None, np.array([index])) for index in np.sort(indices))
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
        found = hooked_gradients(self._hooked, split, batch, self._cache and _Slotted(self._cache))
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
