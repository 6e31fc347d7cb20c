"""The learning rate of every block: as it is set, or what suits its method and place."""

import math
import typing

import pytest

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.catalogue import METHODS
from fedpeft.catalogue.rates import UNMEASURED
from fedpeft.config.adapter import Adapter, MethodName
from fedpeft.config.model import BitFit, Bottleneck, Ia3, Lora, Task, Train
from fedpeft.ids import BlockId
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.rates import SGD_FACTOR, learning_rates, rates_told
from fedpeft.testing.trainers import toy_plan

HIDDEN = 384
ENCODER = ("q", "k", "v", "o", "up", "down")
DECODER = ("q", "k", "v", "o", "up", "down", "gate")


def spec_of(block_id: str, names: typing.Sequence[str], shape: tuple[int, ...]) -> AdapterSpec:
    """One block with a tensor of this shape under each name."""
    tensors = tuple(TensorSpec(name=f"{name}.fedpeft.{block_id}", shape=shape) for name in names)
    method = block_id.split(".", maxsplit=1)[0]
    return AdapterSpec(blocks=(BlockSpec(block_id=BlockId(block_id), method=method, tensors=tensors),))


def matrices(layers: range, targets: typing.Sequence[str]) -> list[str]:
    """Names as models have them."""
    part = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    return [f"model.layers.{i}.{part.get(t, f'mlp.{t}_proj')}" for i in layers for t in targets]


def plan_of(spec: AdapterSpec, adapter: Adapter, *, kind: str = "classify", **train: object) -> LearningPlan:
    """A run's plan."""
    task = Task.model_validate({"kind": kind})
    return toy_plan(spec).model_copy(
        update={"adapter": adapter, "train": Train.model_validate(train), "task": task, "adapter_spec": spec.digest}
    )


def rate_of(spec: AdapterSpec, adapter: Adapter, **more: typing.Any) -> float:
    """Of the one block."""
    (rate,) = learning_rates(plan_of(spec, adapter, **more), spec, [block.block_id for block in spec.blocks]).values()
    return rate


@pytest.mark.parametrize("method", typing.get_args(MethodName))
@pytest.mark.parametrize("kind", ["classify", "causal-lm"])
def test_a_rate_that_is_set_is_the_rate(method: str, kind: str) -> None:
    section = next(one for one in METHODS if one.name == method).section
    block = "lora.B.t8" if method == "lora" else method
    spec = spec_of(block, matrices(range(2), ("q", "v")), (HIDDEN, 8))
    plain, own = (Adapter.having(section(**rate)) for rate in ({}, {"learning_rate": 0.25}))
    assert rate_of(spec, plain, kind=kind, learning_rate=0.5) == 0.5
    assert rate_of(spec, own, kind=kind, learning_rate=0.5) == 0.25
    assert rate_of(spec, own, kind=kind) == 0.25


@pytest.mark.parametrize("method", typing.get_args(MethodName))
@pytest.mark.parametrize("kind", ["classify", "causal-lm"])
def test_every_method_has_a_rate_when_none_is_set(method: str, kind: str) -> None:
    section = next(one for one in METHODS if one.name == method).section
    block = "lora.B.t8" if method == "lora" else method
    spec = spec_of(block, matrices(range(12), ("q", "v")), (HIDDEN, 8))
    found = rate_of(spec, Adapter.having(section()), kind=kind)
    assert 1e-4 < found < 1.0
    assert rate_of(spec, Adapter.having(section()), kind=kind, optimizer="sgd") == pytest.approx(SGD_FACTOR * found)


def test_the_head_takes_small_steps_near_class_means_and_its_own_rate_where_it_is_set() -> None:
    spec = spec_of("head", ("classifier",), (3, HIDDEN))
    seed, means = (rate_of(spec, Adapter(head_start=start)) for start in ("seed", "class-means"))
    assert means < seed
    assert rate_of(spec, Adapter(head_learning_rate=0.125), learning_rate=0.5) == 0.125
    assert rate_of(spec, Adapter(), learning_rate=0.5) == 0.5


def test_a_trained_a_takes_steps_that_turn_its_rows_by_as_much_as_b_grows() -> None:
    lora, names = Lora(train="both", scale=1.0), matrices(range(2), ("q", "v"))
    b = rate_of(spec_of("lora.B.t8", names, (HIDDEN, 8)), Adapter.having(lora))
    a = rate_of(spec_of("lora.A.t8", names, (8, HIDDEN)), Adapter.having(lora))
    assert a == pytest.approx(b / math.sqrt(HIDDEN))


def test_twice_the_scale_is_half_the_rate() -> None:
    spec = spec_of("lora.B.t8", matrices(range(2), ("q", "v")), (HIDDEN, 8))
    assert rate_of(spec, Adapter.having(Lora(scale=2.0))) == rate_of(spec, Adapter.having(Lora(scale=1.0))) / 2


MEASURED: dict[str, tuple[str, range, typing.Sequence[str], Lora | BitFit | Ia3 | Bottleneck, float]] = {
    "encoder, top layer, r8": ("classify", range(5, 6), ENCODER, Lora(rank=8, scale=1.0), 0.0174),
    "encoder, top layer, r1": ("classify", range(5, 6), ENCODER, Lora(rank=1, scale=1.0), 0.0565),
    "encoder, top layer, r32": ("classify", range(5, 6), ENCODER, Lora(rank=32, scale=1.0), 0.0074),
    "encoder, top layer, q and v": ("classify", range(5, 6), ("q", "v"), Lora(rank=8, scale=1.0), 0.0305),
    "decoder, top layer, r8": ("causal-lm", range(29, 30), DECODER, Lora(rank=8, scale=1.0), 0.046),
    "decoder, top layer, r1": ("causal-lm", range(29, 30), DECODER, Lora(rank=1, scale=1.0), 0.183),
    "decoder, top layer, q and v": ("causal-lm", range(29, 30), ("q", "v"), Lora(rank=8, scale=1.0), 0.244),
    "decoder, two layers, q and v": ("causal-lm", range(28, 30), ("q", "v"), Lora(rank=8, scale=1.0), 0.177),
    "decoder, thirty layers, q and v": ("causal-lm", range(30), ("q", "v"), Lora(rank=8, scale=1.0), 0.014),
    "encoder, IA3": ("classify", range(5, 6), ("k", "v", "down"), Ia3(), 0.143),
    "decoder, IA3": ("causal-lm", range(29, 30), ("k", "v", "down"), Ia3(), 0.0597),
}
"""Task, layers, matrices, settings and the best of a grid of rates over 16 steps of AdamW (ADR 0019)."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_table_is_within_a_factor_of_two_of_what_was_measured(name: str) -> None:
    kind, layers, targets, settings, best = MEASURED[name]
    block = "lora.B.t8" if isinstance(settings, Lora) else "ia3"
    found = rate_of(spec_of(block, matrices(layers, targets), (HIDDEN, 8)), Adapter.having(settings), kind=kind)
    assert best / 2 <= found <= best * 2


def test_under_example_level_privacy_adamw_keeps_small_steps() -> None:
    spec, adapter = spec_of("head", ("classifier",), (3, HIDDEN)), Adapter()
    terms = ExampleTerms(epsilon=8.0, delta=1e-5, l2_clip_norm=1.0, noise_multiplier=None, steps=10)
    private = plan_of(spec, adapter).model_copy(update={"privacy": terms})
    assert learning_rates(private, spec, [BlockId("head")]) == {"head": UNMEASURED}


def test_a_run_says_its_rates_by_method() -> None:
    blocks = ("lora.B.t4", "lora.B.t8", "head")
    spec = AdapterSpec(blocks=tuple(spec_of(block, [f"{block}.x"], (HIDDEN, 4)).blocks[0] for block in blocks))
    plan = plan_of(spec, Adapter.having(Lora(learning_rate=0.02), head_learning_rate=0.125))
    assert rates_told(plan, spec) == "learning rates: head 0.125, lora.B 0.02"
