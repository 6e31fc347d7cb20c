"""Example-level DP-SGD (Abadi et al. 2016): training whose every step is a Poisson-sampled Gaussian mechanism.

A step: each example is taken with probability q, by bytes of the operating system (whoever knows the run's seed must
not know the sample); the gradient of each one taken, over all trained blocks together, is clipped to C; the sum is
put on a grid of z C / 2^23 and gets discrete Gaussian noise there; the result, over the *expected* batch size, goes
to the optimizer. A step that takes nobody is noise alone, and counts. What a grid and discrete noise differ from a
real Gaussian is in the accountant (``fedpeft.privacy.sampled_gaussian``).

Fails closed: per-example gradients come from the hooks only if they agree with the micro loop on three made-up
examples; otherwise from the micro loop. Nothing here raises because of what an example holds: a gradient that is not
finite counts as zero.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.entropy import Entropy, generator, os_entropy
from fedpeft.errors import ConfigInvalid, DataInvalid, RunFailed
from fedpeft.ids import BlockId
from fedpeft.methods.lora import LoraPart
from fedpeft.methods.stepped import SteppedPart
from fedpeft.methods.union import UnionAdapter
from fedpeft.privacy.discrete_gaussian import discrete_gaussian
from fedpeft.privacy.sampled_gaussian import NOISE_STEPS
from fedpeft.tuning.batches import Batch, Indices, collate, lengths_of
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.per_sample import Hooked, NoBackEnd, micro_gradients
from fedpeft.tuning.stages import Stages
from fedpeft.tuning.train import LocalPlan, make_optimizer

__all__ = ["BackEnd", "NoiseScale", "PrivateOutcome", "noisy_sum", "poisson_sample", "train_privately"]

BackEnd = Literal["hooks", "micro"]

TOLERANCE = 1e-4
"""Largest difference between the back ends, relative to the norm of the example's gradient."""

_checked: "WeakKeyDictionary[UnionAdapter, dict[frozenset[BlockId], BackEnd]]" = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """The mechanism of one step.

    Args:
        l2_clip_norm: C: an example's gradient is clipped to it.
        noise_multiplier: z.
        sampling_rate: q, in (0, 1].
    """

    l2_clip_norm: float
    noise_multiplier: float
    sampling_rate: float

    @property
    def grid(self) -> float:
        """The step of the grid on which the noise is drawn."""
        return self.noise_multiplier * self.l2_clip_norm / NOISE_STEPS

    def bound(self, parameters: int) -> float:
        """What gradients are clipped to, so that neighbouring sums differ by at most C on the grid.

        Raises:
            ConfigInvalid: the noise is so strong that the grid is too coarse.
        """
        bound = self.l2_clip_norm - self.grid * math.sqrt(parameters)
        if bound < 0.9 * self.l2_clip_norm:
            raise ConfigInvalid(
                f"Expected a noise multiplier below {0.1 * NOISE_STEPS / math.sqrt(parameters):.3g} for {parameters} "
                f"parameters, found {self.noise_multiplier:g}; allow a larger epsilon or fewer steps."
            )
        return bound


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateOutcome:
    """What came of it; the trained values are in the adapter. No loss: it would be a release.

    Args:
        steps: taken, empty ones included.
        back_end: where per-example gradients came from.
    """

    steps: int
    back_end: BackEnd


def train_privately(
    union: UnionAdapter,
    examples: EncodedDataset,
    plan: LocalPlan,
    noise: NoiseScale,
    *,
    cache: HiddenSource | None = None,
    entropy: Entropy = os_entropy,
) -> PrivateOutcome:
    """Train the plan's blocks in place.

    Args:
        union, examples, plan, cache: as for ``train``; ``plan.batch_size`` is the most examples in memory at once,
            and the expected batch is ``noise.sampling_rate`` times the number of examples.
        noise: the mechanism; what it costs is for the accountant.
        entropy: for samples and noise; the operating system's but in tests.

    Raises:
        DataInvalid: no examples.
        ConfigInvalid: a module mixes examples (BatchNorm), the noise does not fit its grid, or the plan asks for a
            proximal term.
        RunFailed: a block did not move.

    Guarantees:
        Neighbouring data sets give sums that differ by at most C:
        tests/privacy/test_dp_sgd.py::test_one_example_more_or_less_moves_the_sum_by_at_most_the_clip_norm.
    """
    if len(examples) == 0:
        raise DataInvalid("Expected at least one example to train on, found none.")
    if plan.proximal_mu:
        raise ConfigInvalid(f"Expected private steps without a proximal term, found proximal_mu={plan.proximal_mu:g}.")
    _refuse_mixing(union.model)
    union.train_only(plan.learning_rates.keys())
    blocks = {
        block.block_id: union.parameters(block.block_id)
        for block in union.spec.blocks
        if block.block_id in plan.learning_rates
    }
    trained = {name: parameter for own in blocks.values() for name, parameter in own.items()}
    stages = Stages(union, checkpointing=plan.checkpointing)
    source = _Source(union, stages, examples, cache, trained, _back_end(union, stages, frozenset(blocks), trained))
    optimizer = make_optimizer({block_id: list(own.values()) for block_id, own in blocks.items()}, plan)
    start = {block_id: [parameter.detach().clone() for parameter in own.values()] for block_id, own in blocks.items()}
    parameters = list(trained.values())
    size = sum(parameter.numel() for parameter in parameters)
    expected = noise.sampling_rate * len(examples)
    lengths = lengths_of(examples)
    for _ in range(plan.steps):
        noisy = noisy_sum(source.gradients, lengths, plan.micro_batch or plan.batch_size, noise, size, entropy)
        _hand_over(parameters, noisy / expected)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for block_id, own in blocks.items():
        if all(torch.equal(old, new) for old, new in zip(start[block_id], own.values(), strict=True)):
            raise RunFailed(f"Expected {block_id} to move in {plan.steps} private steps, found it as it was.")
    union.train_only(())
    return PrivateOutcome(steps=plan.steps, back_end=source.back_end)


def noisy_sum(
    gradients: Callable[[Indices], Iterator[list[Tensor]]],
    lengths: Indices,
    most: int,
    noise: NoiseScale,
    parameters: int,
    entropy: Entropy,
) -> npt.NDArray[np.float64]:
    """One release: the clipped gradients of a Poisson sample, summed, with noise on the grid, (P,).

    Args:
        gradients: of these examples, in one or more parts, each one tensor (b, *shape) a parameter.
        lengths: of each example, which decide what is computed together.
        most: examples at once.
        noise: the mechanism.
        parameters: P.
        entropy: for the sample and the noise.
    """
    bound = noise.bound(parameters)
    total = torch.zeros(parameters, dtype=torch.float64)
    taken = poisson_sample(len(lengths), noise.sampling_rate, entropy)
    for indices in _physical(taken, lengths, most):
        for part in gradients(indices):
            total += clipped_sum(part, bound)
    return _with_noise(total.numpy(), noise, entropy)


def poisson_sample(count: int, rate: float, entropy: Entropy) -> Indices:
    """Every one of ``count`` examples with probability ``rate`` (at most 2^-64 less), independently; ascending."""
    if rate >= 1.0:
        return np.arange(count, dtype=np.int64)
    draws = np.frombuffer(entropy(8 * count), "<u8")
    return np.flatnonzero(draws < np.uint64(int(rate * 2.0**64))).astype(np.int64)


def clipped_sum(gradients: list[Tensor], bound: float) -> Tensor:
    """The sum of examples' gradients, each shortened to ``bound`` over all tensors together, (P,) float64.

    Args:
        gradients: one tensor a parameter, (b, *shape).
    """
    flat = [gradient.flatten(1) for gradient in gradients]
    squares = torch.stack([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) ** 2 for part in flat])
    norms = squares.sum(0).sqrt()  # (b,)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        flat = [torch.where(finite[:, None], part, torch.zeros_like(part)) for part in flat]
    factors = torch.where(finite, torch.clamp(bound / norms.clamp(min=1e-300), max=1.0), torch.zeros_like(norms))
    return torch.cat([factors @ part.double() for part in flat]).cpu()


class _Source:
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
        """Of all these examples at once, or of one after the other."""
        stages = self._stages
        if self._hooked is not None:
            batch = collate(self._examples, indices, pad_id=stages.pad_id, device=stages.device)
            yield _hooked_gradients(self._hooked, stages, batch, self._cache)
            return
        for index in indices:
            one = collate(self._examples, np.array([index]), pad_id=stages.pad_id, device=stages.device)
            yield micro_gradients(example_losses(stages, one, self._cache)[0], self._parameters)


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


def _physical(taken: Indices, lengths: Indices, most: int) -> list[Indices]:
    """The sample in pieces of at most ``most`` examples of similar length, so that memory is bounded and little padded.

    How it is cut changes no sum: each example's gradient is clipped by itself.
    """
    if len(taken) == 0:
        return []
    return np.array_split(taken[np.argsort(lengths[taken], kind="stable")], -(-len(taken) // most))


def _with_noise(total: npt.NDArray[np.float64], noise: NoiseScale, entropy: Entropy) -> npt.NDArray[np.float64]:
    drawn = discrete_gaussian(NOISE_STEPS, len(total), entropy)
    whole: npt.NDArray[np.float64] = np.rint(total / noise.grid)
    whole += drawn
    whole *= noise.grid
    return whole


def _hand_over(parameters: list[nn.Parameter], flat: npt.NDArray[np.float64]) -> None:
    start = 0
    for parameter in parameters:
        part = torch.from_numpy(flat[start : start + parameter.numel()].astype(np.float32))
        parameter.grad = part.view(parameter.shape).to(parameter.device)
        start += parameter.numel()


def _refuse_mixing(model: nn.Module) -> None:
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


def _back_end(
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
