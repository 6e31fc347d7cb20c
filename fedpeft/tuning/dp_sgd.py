"""DP-SGD by examples (Abadi et al. 2016) or people: training whose every step is a Poisson-sampled Gaussian mechanism.

A step is one release (``fedpeft.tuning.dp_sgd_mechanism``) of the gradients of single examples
(``fedpeft.tuning.per_example_gradients``) or of people (``fedpeft.tuning.person_gradients``), over the *expected*
batch size, handed to the optimizer. A step that takes nobody is noise alone, and counts. Correlated noise goes
on from round to round (``fedpeft.privacy.noise_stream``).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.catalogue.opacus import Engine
from fedpeft.data.encode import EncodedDataset
from fedpeft.entropy import Entropy, os_entropy
from fedpeft.errors import ConfigInvalid, DataInvalid
from fedpeft.ids import BlockId
from fedpeft.methods.union import UnionAdapter
from fedpeft.privacy.noise_stream import NoiseStream
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.cache import HiddenSource
from fedpeft.tuning.dp_sgd_mechanism import NoiseScale, Turns, noisy_sum
from fedpeft.tuning.per_example_gradients import BackEnd, GradientSource, refuse_mixing
from fedpeft.tuning.person_gradients import PersonGradients, people_of
from fedpeft.tuning.several.contrast import refuse_alone
from fedpeft.tuning.train import LocalPlan, make_optimizer

__all__ = ["PrivateOutcome", "train_privately"]

_log = logging.getLogger(__name__)

Gradients = Callable[[Indices], Iterator[list[Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateOutcome:
    """What came of it; the trained values are in the adapter. No loss: it would be a release.

    Args:
        steps: taken, empty ones included.
        back_end: where per-example gradients came from.
        stream: of correlated noise, after these steps; to be kept before any of it leaves.
    """

    steps: int
    back_end: BackEnd
    stream: NoiseStream | None = None


def train_privately(
    union: UnionAdapter,
    examples: EncodedDataset,
    plan: LocalPlan,
    noise: NoiseScale,
    *,
    cache: HiddenSource | None = None,
    expected_batch: float | None = None,
    examples_per_person: int | None = None,
    engine: Engine = "fedpeft",
    stream: NoiseStream | None = None,
    entropy: Entropy = os_entropy,
) -> PrivateOutcome:
    """Train the plan's blocks in place.

    Args:
        union, examples, plan: as for ``train``; ``plan.batch_size`` is the most examples in memory at once,
            and the expected batch is ``noise.sampling_rate`` times the number of examples. Nothing of an example is
            raised: with none that can be used, the steps are noise alone.
        cache: of these examples, ``ActivationCache.for_private_training``.
        noise: the mechanism; what it costs is for the accountant.
        expected_batch: what a step's sum is divided by, where that is public and the number of examples (people) is
            not; None: the expected batch.
        examples_per_person: a step takes people (``examples.owners``), and looks at so many examples of each at most;
            None: it takes examples.
        engine: whose hooks have the gradients, where they prove right.
        stream: of correlated noise, before these steps; it covers all blocks that may be trained here, and has as many
            bands as ``noise``. None: independent noise.
        entropy: for samples and noise; the operating system's but in tests.

    Raises:
        DataInvalid: no examples (people), and no expected batch.
        ConfigInvalid: a module or the loss mixes examples, the noise does not fit its grid, or the plan asks for a
            proximal term.
        ValueError: a stream of other noise, or of other blocks.

    Guarantees:
        Neighbouring data sets give sums that differ by at most C:
        tests/privacy/test_sensitivity.py::test_one_example_more_or_less_moves_the_sum_by_at_most_the_clip_norm.
    """
    people = None if examples_per_person is None else people_of(examples.owners)
    units = len(examples) if people is None else len(people)
    if units == 0 and expected_batch is None:
        raise DataInvalid(f"Expected at least one {'example' if people is None else 'person'} to train on, found none.")
    if plan.proximal_mu:
        raise ConfigInvalid(f"Expected private steps without a proximal term, found proximal_mu={plan.proximal_mu:g}.")
    refuse_mixing(union.model)
    refuse_alone(examples)
    union.train_only(plan.learning_rates.keys())
    blocks = {
        block.block_id: union.parameters(block.block_id)
        for block in union.spec.blocks
        if block.block_id in plan.learning_rates
    }
    trained = {name: parameter for own in blocks.values() for name, parameter in own.items()}
    source = GradientSource(
        union,
        frozenset(blocks),
        trained,
        examples,
        most=plan.micro_batch or plan.batch_size,
        cache=cache,
        checkpointing=plan.checkpointing,
        engine=engine,
    )
    optimizer = make_optimizer({block_id: list(own.values()) for block_id, own in blocks.items()}, plan)
    start = {block_id: [parameter.detach().clone() for parameter in own.values()] for block_id, own in blocks.items()}
    parameters = list(trained.values())
    size = sum(parameter.numel() for parameter in parameters)
    gradients: Gradients = source.gradients
    if people is not None and examples_per_person is not None:
        made = PersonGradients(source.of, people, most=examples_per_person, parameters=size, entropy=entropy)
        gradients = made.gradients
    expected = noise.sampling_rate * units / noise.bands if expected_batch is None else expected_batch
    turns = _turns(stream, noise, union, tuple(blocks), examples, people)
    everybody = np.arange(units, dtype=np.int64)
    for _ in range(plan.steps):
        members = everybody if turns is None else turns.members()
        noisy = noisy_sum(_of(gradients, members), len(members), noise, size, entropy, turns)
        _hand_over(parameters, noisy / expected)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _expect_moved(start, blocks, plan.steps)
    union.train_only(())
    return PrivateOutcome(steps=plan.steps, back_end=source.back_end, stream=turns.stream() if turns else None)


def _turns(
    stream: NoiseStream | None,
    noise: NoiseScale,
    union: UnionAdapter,
    trained: Sequence[BlockId],
    examples: EncodedDataset,
    people: Sequence[Indices] | None,
) -> Turns | None:
    if (stream is None) != (noise.bands == 1):
        raise ValueError(f"Expected a stream for noise of {noise.bands} bands, and only for more than one: {stream!r}.")
    if stream is None:
        return None
    units = [tokens.tobytes() for tokens in examples.input_ids]
    if people is not None:
        owners = examples.owners
        units = [] if owners is None else [owners[own[0]].tobytes() for own in people]
    return Turns(stream, noise, units, {block.block_id: block.size for block in union.spec.blocks}, trained)


def _expect_moved(
    start: Mapping[BlockId, list[Tensor]], blocks: Mapping[BlockId, Mapping[str, nn.Parameter]], steps: int
) -> None:
    """Noise moves everything; what stays is not trained."""
    for block_id, own in blocks.items():
        if all(torch.equal(old, new) for old, new in zip(start[block_id], own.values(), strict=True)):
            _log.error("expected %s to move in %d private steps, found it as it was", block_id, steps)


def _of(gradients: Gradients, members: Indices) -> Gradients:
    """The gradients of units that are counted among the members."""
    return lambda taken: gradients(members[taken])


def _hand_over(parameters: list[nn.Parameter], flat: npt.NDArray[np.float64]) -> None:
    start = 0
    for parameter in parameters:
        part = torch.from_numpy(flat[start : start + parameter.numel()].astype(np.float32))
        parameter.grad = part.view(parameter.shape).to(parameter.device)
        start += parameter.numel()
