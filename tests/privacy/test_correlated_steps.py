"""Private steps under correlated noise, on a model: whose turn each is, what is divided, what is refused."""

import numpy as np
import pytest

from fedpeft.config.model import Adapter, BitFit, Lora
from fedpeft.data import EncodedDataset
from fedpeft.entropy import os_entropy, seeded_entropy
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.privacy import NoiseStream
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.tuning import LocalPlan, NoiseScale, dp_sgd_mechanism, train_privately
from fedpeft.tuning.person_gradients import PersonGradients

pytestmark = pytest.mark.torch

NOISE = NoiseScale(l2_clip_norm=0.5, noise_multiplier=1.0, sampling_rate=1.0, bands=4, momentum=0.9)


def adapter() -> UnionAdapter:
    return attach(tiny_bert(), Adapter(lora=Lora(rank=4, train="both"), bitfit=BitFit()), seed=0)


def trainable(union: UnionAdapter) -> list[BlockId]:
    return [block.block_id for block in union.spec.blocks if block.trainable]


def stream_for(union: UnionAdapter, seed: int = 1, **change: object) -> NoiseStream:
    settings = {"bands": 4, "momentum": 0.9, "entropy": seeded_entropy(seed, "stream")} | change
    return NoiseStream.begin("run", trainable(union), **settings)  # type: ignore[arg-type]


def plan_for(blocks: list[BlockId], steps: int) -> LocalPlan:
    return LocalPlan(
        steps=steps,
        batch_size=4,
        optimizer="sgd",
        learning_rates=dict.fromkeys(blocks, 0.5),
        weight_decay=0.0,
        max_grad_norm=1.0,
    )


def owned(examples: EncodedDataset, owners: list[int]) -> EncodedDataset:
    return EncodedDataset(
        input_ids=examples.input_ids, labels=examples.labels, truncated=0, owners=np.array(owners, np.uint64)
    )


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The units of each step, in order of their data set."""
    seen: list[list[int]] = []
    real = dp_sgd_mechanism.noisy_sum

    def spied(gradients, *rest):  # type: ignore[no-untyped-def]
        seen.append([])

        def looked(units):  # type: ignore[no-untyped-def]
            seen[-1] += units.tolist()
            return gradients(units)

        return real(looked, *rest)

    monkeypatch.setattr("fedpeft.tuning.dp_sgd.noisy_sum", spied)
    monkeypatch.setattr(
        "fedpeft.tuning.dp_sgd._of",
        lambda gradients, members: (
            lambda units: (seen[-1].clear(), seen[-1].extend(members[units].tolist())) and gradients(members[units])
        ),
    )
    return seen


def test_over_rounds_everybody_has_a_turn_in_every_fourth_step_wherever_they_stand(taken: list[list[int]]) -> None:
    union, examples = adapter(), class_examples(20)
    stream = stream_for(union)
    for steps in (3, 1, 6, 2):
        outcome = train_privately(union, examples, plan_for(trainable(union), steps), NOISE, stream=stream)
        assert outcome.stream is not None
        stream = outcome.stream
    assert stream.taken == 12
    for unit in range(20):
        own = [step for step, units in enumerate(taken) if unit in units]
        assert len(own) == 3, "at a sampling rate of 1"
        assert set(np.diff(own)) == {4}
    before = [{examples.input_ids[unit].tobytes() for unit in units} for units in taken]
    taken.clear()
    order = np.random.default_rng(0).permutation(20)[:13]  # another order, and fewer: nobody else changes groups
    other = EncodedDataset(
        input_ids=tuple(examples.input_ids[i] for i in order), labels=examples.labels[order], truncated=0
    )
    train_privately(union, other, plan_for(trainable(union), 4), NOISE, stream=stream)
    left = {tokens.tobytes() for tokens in other.input_ids}
    assert [{other.input_ids[unit].tobytes() for unit in units} for units in taken] == [
        group & left for group in before[:4]
    ]


def test_people_have_their_turn_together_with_all_they_have(taken: list[list[int]]) -> None:
    union = adapter()
    examples = owned(class_examples(18), [1 + place // 3 for place in range(18)])
    outcome = train_privately(
        union, examples, plan_for(trainable(union), 8), NOISE, examples_per_person=2, stream=stream_for(union)
    )
    assert outcome.stream is not None
    for person in range(6):
        own = [step for step, units in enumerate(taken) if person in units]
        assert len(own) == 2
        assert own[1] - own[0] == 4


def test_nobody_at_all_leaves_noise_alone_which_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a round that trains some of the blocks takes their part of the rows."""
    union = adapter()
    blocks = trainable(union)
    none = class_examples(4).__class__(input_ids=(), labels=np.zeros(0, np.int64), truncated=0)
    first = union.extract(blocks)
    outcome = train_privately(union, none, plan_for(blocks[:1], 2), NOISE, stream=stream_for(union), expected_batch=8.0)
    assert outcome.stream is not None
    width = sum(union.spec[block].size for block in blocks)
    assert outcome.stream.whole(width)
    assert len(outcome.stream.rows) == 2
    newest, before = (np.frombuffer(row, "<i4").astype(np.float64) for row in outcome.stream.rows)
    moved = union.extract(blocks)
    size = union.spec[blocks[0]].size
    expected = first[blocks[0]] - 0.5 * NOISE.grid * (newest + before)[:size] / 8.0
    assert np.allclose(moved[blocks[0]], expected, rtol=1e-4, atol=1e-6)
    assert all(np.array_equal(first[block], moved[block]) for block in blocks[1:])


def test_streams_that_do_not_fit_are_refused_before_anything_is_released() -> None:
    union, examples = adapter(), class_examples(8)
    plan = plan_for(trainable(union), 1)
    independent = NoiseScale(l2_clip_norm=0.5, noise_multiplier=1.0, sampling_rate=0.5)
    for noise, stream, why in (
        (NOISE, None, "Expected a stream for noise of 4 bands"),
        (independent, stream_for(union), "Expected a stream for noise of 1 bands"),
        (NOISE, stream_for(union, bands=2), "4 bands"),
        (NOISE, stream_for(union, momentum=0.5), "shaped for 0.9"),
    ):
        with pytest.raises(ValueError, match=why):
            train_privately(union, examples, plan, noise, stream=stream)
    less = NoiseStream.begin("run", trainable(union)[:1], bands=4, momentum=0.9, entropy=os_entropy)
    with pytest.raises(ValueError, match="Expected noise for"):
        train_privately(union, examples, plan, NOISE, stream=less)


def test_the_noise_of_a_step_is_the_multiplier_times_the_matrix_norm_times_the_clip() -> None:
    union = adapter()
    blocks = trainable(union)
    none = class_examples(4).__class__(input_ids=(), labels=np.zeros(0, np.int64), truncated=0)
    start = union.extract(blocks)
    train_privately(union, none, plan_for(blocks, 1), NOISE, stream=stream_for(union), expected_batch=1.0)
    after = union.extract(blocks)
    moved = np.concatenate([(after[block] - start[block]) / 0.5 for block in blocks])
    expected = NOISE.noise_multiplier * NOISE.spread * NOISE.l2_clip_norm
    assert NOISE.spread > 1.5
    assert moved.std() == pytest.approx(expected, rel=6 / np.sqrt(2 * len(moved)))


def test_a_steps_sum_is_divided_by_what_one_group_gives_it() -> None:
    """A fourth of the data set at this rate; without a public size the expected batch follows from the examples."""
    left = []
    for expected in (None, 20 * 0.5 / 4):
        union, noise = (
            adapter(),
            NoiseScale(l2_clip_norm=0.5, noise_multiplier=1.0, sampling_rate=0.5, bands=4, momentum=0.9),
        )
        train_privately(
            union,
            class_examples(20),
            plan_for(trainable(union), 3),
            noise,
            stream=stream_for(union),
            expected_batch=expected,
            entropy=seeded_entropy(5, "divided"),
        )
        left.append(np.concatenate(list(union.extract(trainable(union)).values())))
    assert np.array_equal(*left)


def test_a_person_on_two_devices_or_twice_on_one_is_no_promise_and_the_second_is_refused() -> None:
    """Seeded bug "a person counted twice"; a person on two devices is two releases, which the plan must exclude."""
    with pytest.raises(TypeError, match="an example of two people"):
        PersonGradients(lambda _: iter(()), [np.array([0, 1]), np.array([1])], most=2, parameters=1, entropy=os_entropy)
