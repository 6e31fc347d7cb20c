"""Where the gradient of each example comes from: hooks, if they prove right, else the micro loop.

Fails closed: per-example gradients come from the hooks only if they agree with the micro loop on three made-up
examples, at values where no gradient vanishes by construction; otherwise each example goes through the model alone.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Literal
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
from fedpeft.tuning.batches import Batch, Indices, collate
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.per_sample import Hooked, NoBackEnd, micro_gradients
from fedpeft.tuning.stages import Stages

__all__ = ["BackEnd", "GradientSource", "example_losses", "refuse_mixing", "trusted_back_end"]

_log = logging.getLogger(__name__)

BackEnd = Literal["hooks", "micro"]

TOLERANCE = 1e-4
"""Largest difference between the back ends, relative to the norm of the example's gradient."""

_checked: "WeakKeyDictionary[UnionAdapter, dict[frozenset[BlockId], BackEnd]]" = WeakKeyDictionary()


class GradientSource:
    """Gradients of examples, from either back end."""

    def __init__(
        self,
        union: UnionAdapter,
        stages: Stages,
        examples: EncodedDataset,
        cache: HiddenSource | None,
        trained: Mapping[str, nn.Parameter],
        back_end: BackEnd,
    ) -> None:
        self.back_end = back_end
        self._stages, self._examples, self._cache = stages, examples, cache
        self._parameters = list(trained.values())
        self._hooked = Hooked(union.model, trained) if back_end == "hooks" else None

    def gradients(self, indices: Indices) -> Iterator[list[Tensor]]:
        """Of all these examples at once, or of one after the other.

        An example that raises has a gradient of zero, and raises nothing: whether a step could be taken is no public
        fact. What a batch cannot do together its examples do alone.
        """
        stages = self._stages
        if self._hooked is not None:
            try:
                batch = collate(self._examples, indices, pad_id=stages.pad_id, device=stages.device)
                found = _hooked_gradients(self._hooked, stages, batch, self._cache)
            except Exception:
                _log.warning("%d examples could not be passed together; one by one", len(indices), exc_info=True)
            else:
                yield found
                return
        for index in indices:
            try:
                one = collate(self._examples, np.array([index]), pad_id=stages.pad_id, device=stages.device)
                alone = micro_gradients(example_losses(stages, one, self._cache)[0], self._parameters)
            except Exception:
                _log.warning("an example has no gradient and counts as zero", exc_info=True)
            else:
                yield alone


def example_losses(stages: Stages, batch: Batch, cache: HiddenSource | None) -> Tensor:
    """Each example's own loss, (b,): of its class, or the mean over its labelled tokens. Never a mean over the batch.

    A batch mean weighs an example by what its neighbours hold; under it the sensitivity was 4.6 C
    (research/privacy.md).
    """
    logits, labels = logits_of(stages, batch, cache)
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    if batch.labels.dim() == 1:
        return losses
    following = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED) != IGNORED  # (b, s), as Stages has it
    counts = following.sum(1)
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return torch.zeros(len(counts), device=losses.device).index_add(0, row, losses) / counts.clamp(min=1)


def _hooked_gradients(hooked: Hooked, stages: Stages, batch: Batch, cache: HiddenSource | None) -> list[Tensor]:
    with hooked.listening():
        losses = example_losses(stages, batch, cache)
        if losses.shape != (len(batch.indices),):
            raise NoBackEnd(f"Expected one loss an example, found {tuple(losses.shape)}.")
        if not losses.requires_grad:
            raise NoBackEnd("Expected a loss that depends on what is trained, found one that does not.")
        torch.autograd.backward([losses.sum()])
        return hooked.take(len(batch.indices))


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


def trusted_back_end(
    union: UnionAdapter, stages: Stages, blocks: frozenset[BlockId], trained: Mapping[str, nn.Parameter]
) -> BackEnd:
    """The hooks where they agree with the micro loop on three made-up examples, else the micro loop."""
    known = _checked.setdefault(union, {})
    if blocks not in known:
        known[blocks] = "hooks" if _agree(union, stages, trained) else "micro"
    return known[blocks]


def _agree(union: UnionAdapter, stages: Stages, trained: Mapping[str, nn.Parameter]) -> bool:
    """Whether both back ends give the same gradients, at values where no gradient vanishes by construction."""
    draw = generator(0, "self-check")
    parameters = list(trained.values())
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:  # U and B begin at zero, and would hide a wrong gradient of D and A
            step = 0.05 * draw.standard_normal(tuple(parameter.shape))
            parameter.add_(torch.from_numpy(np.asarray(step, np.float32)).to(parameter.device))
    try:
        examples = _made_up(union, draw)
        everyone = collate(examples, np.arange(3), pad_id=stages.pad_id, device=stages.device)
        hooked = _hooked_gradients(Hooked(union.model, trained), stages, everyone, None)
        for index in range(3):
            one = collate(examples, np.array([index]), pad_id=stages.pad_id, device=stages.device)
            exact = micro_gradients(example_losses(stages, one, None)[0], parameters)
            norm = math.sqrt(sum(float(part.double().square().sum()) for part in exact))
            off = math.sqrt(
                sum(
                    float((mine[index] - part[0]).double().square().sum())
                    for mine, part in zip(hooked, exact, strict=True)
                )
            )
            if not off <= TOLERANCE * norm:
                return False
    except (NoBackEnd, RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, KeyError):
        return False  # whatever went wrong there: the micro loop is exact
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    return True


def _made_up(union: UnionAdapter, draw: np.random.Generator) -> EncodedDataset:
    """Three examples of unequal length, of no one's data."""
    config = union.model.config
    ids = tuple(draw.integers(1, int(config.vocab_size), size).astype(np.int32) for size in (5, 9, 12))  # type: ignore[union-attr, arg-type]
    if union.anatomy.head is None:
        labels = tuple(np.where(np.arange(len(row)) < 2, IGNORED, row).astype(np.int64) for row in ids)
        return EncodedDataset(input_ids=ids, labels=labels, truncated=0)
    classes = int(config.num_labels)  # type: ignore[union-attr, arg-type]
    return EncodedDataset(input_ids=ids, labels=draw.integers(0, classes, 3).astype(np.int64), truncated=0)
