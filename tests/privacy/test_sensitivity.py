"""One example more or less moves the sum of clipped gradients by at most C, whatever state the coordinator sends.

The bound holds for each device and each step, so it is measured there: f(D) - f(D - e) for every example e, without
noise, through the product's own gradients, clip and grid. A state of scale 1e3 or 1e18 amplifies what a matrix product
rounds: through hooks in batches of whatever shape came, these examples and two more moved the sum by 2.15 C (LoRA, both
factors, 1e3).
"""

import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from fedpeft.catalogue.opacus import Engine
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Dora, Ia3, LayerNorm, Lora, Vera
from fedpeft.data import EncodedDataset
from fedpeft.methods import attach
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.tuning import ActivationCache, NoiseScale, hook_check
from fedpeft.tuning.dp_sgd_mechanism import clipped_sum
from fedpeft.tuning.per_example_gradients import GradientSource
from fedpeft.tuning.slots import CELLS, fixed_batch, pieces, shape_of
from fedpeft.tuning.split_forward import SplitForward

sys.path.insert(0, str(Path(__file__).parent))
from hostile_state import hostile

pytestmark = pytest.mark.torch

CASES = {
    "lora": Adapter(lora=Lora(rank=4)),
    "lora both": Adapter(lora=Lora(rank=4, train="both")),
    "bitfit": Adapter(bitfit=BitFit()),
    "ia3": Adapter(ia3=Ia3()),
    "layernorm": Adapter(layernorm=LayerNorm()),
    "bottleneck": Adapter(bottleneck=Bottleneck(width=4)),
    "dora": Adapter(dora=Dora(rank=4)),
    "vera": Adapter(vera=Vera(rank=8, initial=1.0)),
    "lora and bitfit": Adapter(lora=Lora(rank=4), bitfit=BitFit()),
}
NOISE = NoiseScale(l2_clip_norm=0.5, noise_multiplier=1.0, sampling_rate=1.0)
LENGTHS = (1, 64, 20, 3, 2)
"""Unequal, so that whoever leaves changes the shape in which some neighbour would be computed."""


def unequal(seed: int) -> EncodedDataset:
    draw = np.random.default_rng(seed)
    ids = tuple(draw.integers(1, 120, length).astype(np.int32) for length in LENGTHS)
    return EncodedDataset(input_ids=ids, labels=draw.integers(0, 3, len(ids)).astype(np.int64), truncated=0)


def source_of(
    union, trained, examples: EncodedDataset, *, most: int = 32, cache=None, engine: Engine = "fedpeft"
) -> GradientSource:
    blocks = frozenset(block.block_id for block in union.spec.blocks if block.trainable)
    return GradientSource(union, blocks, trained, examples, most=most, cache=cache, engine=engine)


def whole_sum(union, trained, examples: EncodedDataset, engine: Engine = "fedpeft") -> np.ndarray:
    """What a step releases of all these examples, without its noise, in steps of the grid."""
    size = sum(parameter.numel() for parameter in trained.values())
    total = torch.zeros(size, dtype=torch.float64)
    for part in source_of(union, trained, examples, most=2, engine=engine).gradients(np.arange(len(examples))):
        total += clipped_sum(part, NOISE.bound(size), NOISE.grid)
    return total.numpy()


def some(examples: EncodedDataset, chosen: list[int]) -> EncodedDataset:
    labels = examples.labels
    kept = labels[chosen] if isinstance(labels, np.ndarray) else tuple(labels[i] for i in chosen)
    return EncodedDataset(input_ids=tuple(examples.input_ids[i] for i in chosen), labels=kept, truncated=0)


def without(examples: EncodedDataset, index: int) -> EncodedDataset:
    return some(examples, [i for i in range(len(examples)) if i != index])


@pytest.mark.drawn(2, each=("scale", "engine"), always=lambda case, **_: case == "lora both")
@pytest.mark.parametrize(
    ("case", "scale", "engine"),
    [
        *((case, 1e3, "fedpeft") for case in CASES),
        *((case, 1e18, "fedpeft") for case in CASES),
        *((case, 1.0, engine) for case in ("lora both", "dora") for engine in get_args(Engine)),
        *((case, 1e3, "opacus") for case in ("lora both", "bottleneck")),
    ],
)
def test_one_example_more_or_less_moves_the_sum_by_at_most_the_clip_norm(
    case: str, scale: float, engine: Engine
) -> None:
    union, examples = attach(tiny_bert(), CASES[case], seed=0), unequal(1)
    trained = hostile(union, scale)
    whole = whole_sum(union, trained, examples, engine)
    moves = [
        np.linalg.norm(whole - whole_sum(union, trained, without(examples, index), engine))
        * NOISE.grid
        / NOISE.l2_clip_norm
        for index in range(len(LENGTHS))
    ]
    # Sums are whole numbers and differ by one example's; 1e-9 is what the norm here rounds.
    assert max(moves) <= 1 + 1e-9
    if scale == 1.0:
        assert max(moves) > 0.9, "a state at which clipping is at work"


@pytest.mark.drawn(1, each=("scale", "engine"))
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize(("scale", "engine"), [(1.0, "fedpeft"), (1e3, "fedpeft"), (1e3, "opacus")])
def test_no_neighbour_changes_a_bit_of_an_example_s_gradient(
    build, scale: float, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, among all, in drawn company and order: through the hooks, also where they would not be used."""
    monkeypatch.setattr(hook_check, "_close", lambda found, exact: True)
    count = 16
    examples = class_examples(count) if build is tiny_bert else token_examples(count)
    union = attach(build(), CASES["lora both"], seed=0)
    source = source_of(union, hostile(union, scale), examples, most=8, engine=engine)
    assert source.back_end == {"fedpeft": "hooks", "opacus": "opacus"}[engine]
    lengths = np.array([len(row) for row in examples.input_ids])
    rows: dict[int, torch.Tensor] = {}
    draw = np.random.default_rng(3)
    for sample in [np.arange(count), *(draw.permutation(count)[: draw.integers(1, count)] for _ in range(4))]:
        order = [int(i) for _, piece in pieces(sample, lengths, most=8, longest=64) for i in piece]
        found = torch.cat([torch.cat([g.flatten(1) for g in part], 1) for part in source.gradients(sample)])
        for index, row in zip(order, found, strict=True):
            assert torch.equal(rows.setdefault(index, row), row)


@pytest.mark.parametrize("engine", get_args(Engine))
def test_an_example_that_raises_changes_no_bit_of_its_neighbours(engine: Engine) -> None:
    """A token that the model does not know: its batch fails, and the others are tried alone in the same shape."""
    good = unequal(1)
    bad = EncodedDataset(
        input_ids=(*good.input_ids, np.array([10**6] * 20, np.int32)), labels=np.append(good.labels, 0), truncated=0
    )
    union = attach(tiny_bert(), CASES["lora both"], seed=0)
    trained = hostile(union, 1.0)
    assert np.array_equal(whole_sum(union, trained, good, engine), whole_sum(union, trained, bad, engine))


def test_a_cached_activation_does_not_depend_on_other_examples() -> None:
    union, examples = attach(tiny_bert(), Adapter(layers=1, lora=Lora(rank=4)), seed=0), class_examples(30)
    stages = SplitForward(union)
    many = ActivationCache.for_private_training(examples, batch_size=8, seed=0, max_bytes=1 << 20)
    few = ActivationCache.for_private_training(some(examples, [0, 5, 9]), batch_size=8, seed=1, max_bytes=300)
    for here, there in enumerate([0, 5, 9]):
        mine, theirs = few.rows(stages, np.array([here]))[0], many.rows(stages, np.array([there]))[0]
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("engine", get_args(Engine))
def test_a_mean_over_the_batch_would_be_noticed(engine: Engine) -> None:
    """Seeded bug: a module that subtracts its batch's mean is not trusted with any shape."""
    union, examples = attach(tiny_bert(), CASES["bitfit"], seed=0), class_examples(12)
    trained = hostile(union, 0.1)
    layer = union.anatomy.layer(1)
    layer.register_forward_hook(lambda module, inputs, output: output - 1e-3 * output.mean(0, keepdim=True))
    assert source_of(union, trained, examples, engine=engine).back_end == "micro"


def test_a_state_at_which_the_hooks_are_not_the_gradient_goes_through_the_micro_loop() -> None:
    """And the next state is looked at again: what was found at one holds for no other."""
    union, examples = attach(tiny_bert(), CASES["lora and bitfit"], seed=0), class_examples(12)
    found = [source_of(union, hostile(union, scale), examples).back_end for scale in (0.05, 1e18, 0.05)]
    assert found == ["hooks", "micro", "hooks"]


def test_a_batch_has_as_many_slots_whoever_is_in_it() -> None:
    examples, longest = class_examples(50), 64
    lengths = np.array([len(row) for row in examples.input_ids])
    for most in (1, 7, 32):
        seen = []
        for shape, members in pieces(np.arange(50), lengths, most=most, longest=longest):
            batch = fixed_batch(examples, members, shape, pad_id=0, device=torch.device("cpu"))
            assert batch.input_ids.shape == (shape.slots, shape.width)
            assert shape.slots <= most
            assert shape.slots * shape.width <= CELLS
            assert (batch.attention_mask is None) == shape.full
            assert {shape_of(int(lengths[i]), most=most, longest=longest) for i in members} == {shape}
            seen += members.tolist()
        assert sorted(seen) == list(range(50))
    assert shape_of(63, most=8, longest=63).width == 63, "never wider than the model"
