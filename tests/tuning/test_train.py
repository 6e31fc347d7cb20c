"""Local training: what moves, what does not, and that the arguments alone decide it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedpeft.catalogue.parallel import Parallel
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Dora, Fish, Ia3, LayerNorm, Lora, Vera
from fedpeft.data import EncodedDataset
from fedpeft.errors import DataInvalid, RunFailed, SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.methods import attach, blocks_for
from fedpeft.testing.models import class_examples, examples_for, tiny_bert, tiny_llama, token_examples
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import ActivationCache, evaluate, train
from fedpeft.tuning.batches import collate
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

LORA = Lora(rank=4, targets=("q", "v"))
CASES = {
    "lora": (tiny_bert, Adapter(lora=LORA)),
    "bitfit": (tiny_bert, Adapter(bitfit=BitFit())),
    "ia3": (tiny_bert, Adapter(ia3=Ia3())),
    "norms": (tiny_bert, Adapter(layernorm=LayerNorm())),
    "bottlenecks": (tiny_bert, Adapter(bottleneck=Bottleneck(width=8))),
    "bottlenecks beside": (tiny_bert, Adapter(parallel=Parallel(width=8, scale=1.0, activation="gelu"))),
    "houlsby": (tiny_bert, Adapter(bottleneck=Bottleneck(width=8), layernorm=LayerNorm())),
    "dora": (tiny_bert, Adapter(dora=Dora(rank=4, targets=("q", "down")))),
    "vera": (tiny_bert, Adapter(vera=Vera(rank=16))),
    "decoder dora": (tiny_llama, Adapter(dora=Dora(rank=4, targets=("q", "v", "gate")))),
    "decoder vera": (tiny_llama, Adapter(vera=Vera(rank=32, targets=("q", "v", "down"), initial=1.0))),
    "rank-stabilized lora": (tiny_bert, Adapter(lora=LORA.model_copy(update={"scaling": "rslora"}))),
    "head": (tiny_bert, Adapter()),
    "all together": (tiny_bert, Adapter(lora=LORA, bitfit=BitFit(), ia3=Ia3())),
    "decoder lora": (
        tiny_llama,
        Adapter(lora=LORA.model_copy(update={"targets": ("q", "k", "v", "o", "up", "down", "gate")})),
    ),
    "decoder ia3": (tiny_llama, Adapter(ia3=Ia3())),
    "decoder norms": (tiny_llama, Adapter(layernorm=LayerNorm())),
    "decoder bottlenecks": (tiny_llama, Adapter(bottleneck=Bottleneck(width=8))),
    "decoder bottlenecks beside": (tiny_llama, Adapter(parallel=Parallel(width=8, scale=1.0))),
    "decoder together": (tiny_llama, Adapter(lora=LORA, ia3=Ia3())),
}


def plan_of(blocks, *, steps=12, rate=0.02, **changes):
    return plan_for(blocks, steps=steps, rate=rate, **changes)


# tests/methods/test_every_method.py and test_additive.py train every method in fewer steps and ask the same of it, of
# the one that is bare: not of another scaling, of the head alone, nor of methods together.
ASKED_HERE_ALONE = ("rank-stabilized lora", "head", "houlsby", "all together", "decoder together")


@pytest.mark.drawn(2, always=lambda case: case in ASKED_HERE_ALONE)
@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_and_exactly_the_trained_parameters_move(case):
    build, adapter = CASES[case]
    union, examples = attach(build(), adapter, seed=0), examples_for(build)
    blocks = trainable(union)
    base = {name: p.detach().clone() for name, p in union.model.named_parameters()}
    before = evaluate(union, examples, limit=0, batch_size=16)
    outcome = train(union, examples, plan_of(blocks, steps=40), seed=0)
    after = evaluate(union, examples, limit=0, batch_size=16)
    assert after.loss_sum < 0.9 * before.loss_sum
    assert outcome.steps == 40
    moved = {name for name, p in union.model.named_parameters() if not torch.equal(p, base[name])}
    assert moved == {tensor.name for block in blocks for tensor in union.spec[block].tensors}


# DoRA's gradient leaves out the norm, as its paper does: tests/methods/test_dora.py compares it with peft's.
@pytest.mark.parametrize("case", [case for case in CASES if "dora" not in case])
def test_gradients_equal_finite_differences(case):
    build, adapter = CASES[case]
    union, examples = attach(build(), adapter, seed=0), examples_for(build, 4)
    union.model.double()  # Llama's norms compute in float32 all the same: hence the width of the step
    union.train_only(trainable(union))
    split = SplitForward(union)
    batch = collate(examples, np.arange(4), pad_id=0, device=split.device)

    def loss():
        return functional.cross_entropy(*split.logits(batch))

    loss().backward()
    draw = torch.Generator().manual_seed(0)
    for block in trainable(union):
        parameters = list(union.parameters(block).values())
        directions = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]
        expected = sum(float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True))
        width, values = 1e-3, []
        for position in (width, -2 * width, width):  # ahead, behind, and back
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(position * d)
                values.append(float(loss()))
        assert (values[0] - values[1]) / (2 * width) == pytest.approx(expected, rel=2e-3, abs=1e-4), block


@pytest.mark.parametrize("changes", [{"micro_batch": 3}, {"checkpointing": True}], ids=["micro-batches", "recomputed"])
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_saving_memory_takes_the_same_steps(build, changes):
    adapter, examples, found = Adapter(lora=LORA, fish=Fish(keep=0.01), layers=2), examples_for(build, 24), []
    for settings in ({}, changes):
        union = attach(build(), adapter, seed=0)
        blocks = [BlockId("lora.B.t2"), BlockId("lora.B.t4"), BlockId("fish"), BlockId("fish.fisher")]
        outcome = train(union, examples, plan_of(blocks, steps=3, optimizer="sgd", **settings), seed=0)
        found.append((outcome.mean_loss, union.extract(blocks)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for block, values in found[0][1].items():
        assert np.allclose(values, found[1][1][block], atol=1e-5), block
        assert values.any()


def test_recomputing_keeps_less_for_the_backward_pass():
    union, examples = attach(tiny_llama(), Adapter(lora=LORA), seed=0), token_examples(8)
    union.train_only(trainable(union))
    kept = []
    for again in (False, True):
        split, sizes = SplitForward(union, checkpointing=again), []
        batch = collate(examples, np.arange(8), pad_id=0, device=split.device)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            split.logits(batch)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_training_a_prefix_of_tiers_leaves_the_others_untouched():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=8)), seed=0)
    start = union.initial_state()
    blocks = blocks_for(union.spec, methods=["lora"], rank=4, head=True)
    train(union, class_examples(), plan_of(blocks), seed=0)
    changed = {block for block, digest in union.state().digests.items() if digest != start.digests[block]}
    assert changed == {"lora.B.t2", "lora.B.t4", "head"}


def test_a_device_applies_blocks_that_it_does_not_train():
    union = attach(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit()), seed=0)
    start = union.initial_state()
    other = start.replace({BlockId("lora.B.t4"): np.full_like(start[BlockId("lora.B.t4")], 0.5)})
    results = []
    for state in (start, other):
        union.load(state)
        train(union, class_examples(), plan_of([BlockId("bitfit")]), seed=0)
        results.append(union.extract([BlockId("bitfit")])[BlockId("bitfit")])
    assert not np.allclose(results[0], results[1], atol=1e-3)


def test_each_block_has_its_own_learning_rate():
    union = attach(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit()), seed=0)
    start = union.initial_state()
    rates = {BlockId("lora.B.t2"): 0.1, BlockId("bitfit"): 0.001}
    plan = replace(plan_of(rates, steps=1), learning_rates=rates)
    train(union, class_examples(), plan, seed=0)
    for block, rate in rates.items():  # Adam's first step is the learning rate in every coordinate
        step = np.abs(union.extract([block])[block] - start[block])
        assert float(np.median(step)) == pytest.approx(rate, rel=0.01)


def test_the_gradient_is_clipped_over_all_blocks_together():
    union = attach(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit()), seed=0)
    start = union.initial_state()
    blocks = trainable(union)
    train(union, class_examples(), plan_of(blocks, steps=1, rate=1.0, optimizer="sgd", max_grad_norm=1e-3), seed=0)
    step = np.concatenate([union.extract([block])[block] - start[block] for block in blocks])
    assert float(np.linalg.norm(step)) == pytest.approx(1e-3, rel=1e-2)


def test_weight_decay_pulls_on_trained_blocks_only():
    union = attach(tiny_bert(), Adapter(bitfit=BitFit()), seed=0)
    start = union.initial_state()
    plan = plan_of([BlockId("head")], steps=1, rate=1e-9, optimizer="sgd", weight_decay=1e8, max_grad_norm=1e-9)
    train(union, class_examples(), plan, seed=0)
    assert np.allclose(union.extract([BlockId("head")])[BlockId("head")], 0.9 * start[BlockId("head")], atol=1e-5)
    assert np.array_equal(union.extract([BlockId("bitfit")])[BlockId("bitfit")], start[BlockId("bitfit")])


def test_rounds_follow_the_stream_of_one_long_round():
    examples = class_examples(20)
    seen = []
    for pieces in ([7], [3, 4]):
        union, first = attach(tiny_bert(), Adapter(lora=LORA), seed=0), 0
        for steps in pieces:
            plan = plan_of(trainable(union), steps=steps, rate=0.05, optimizer="sgd")  # no optimizer memory
            train(union, examples, plan, seed=5, first_step=first)
            first += steps
        seen.append(union.state().digests)
    assert seen[0] == seen[1]


def test_the_optimizer_forgets_between_rounds():
    union = attach(tiny_bert(), Adapter(lora=LORA), seed=0)
    results = []
    for _ in range(2):
        union.load(union.initial_state())
        train(union, class_examples(), plan_of(trainable(union)), seed=0)
        results.append(union.state().digests)
    assert results[0] == results[1]


def test_the_order_in_which_learning_rates_are_given_does_not_matter():
    results = []
    for direction in (1, -1):
        union = attach(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit(), ia3=Ia3()), seed=0)
        train(union, class_examples(), plan_of(trainable(union)[::direction]), seed=0)
        results.append(union.state().digests)
    assert results[0] == results[1]


def test_training_reads_no_global_random_state():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        union = attach(tiny_bert(), Adapter(lora=LORA), seed=0)
        before = torch.get_rng_state()
        train(union, class_examples(), plan_of(trainable(union)), seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(union.state().digests)
    assert results[0] == results[1]


@pytest.mark.parametrize("layers", ["all", 1])
def test_two_replicas_in_two_threads_end_bit_identical_to_one_after_the_other(layers):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        adapter = Adapter(lora=LORA, bitfit=BitFit(), layers=layers)
        original = attach(tiny_bert(), adapter, seed=0)

        def work(seed):
            union, examples = original.replicate(), class_examples(40, seed=seed)
            union.load(original.initial_state())
            cache = None
            if layers != "all":
                cache = ActivationCache.for_training(examples, batch_size=8, seed=seed, max_bytes=1 << 20)
            train(union, examples, plan_of(trainable(union), steps=12), seed=seed, cache=cache)
            result = evaluate(union, examples, limit=0, batch_size=8)
            return union.state().digests, result

        alone = [work(seed) for seed in (1, 2)]
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                assert list(pool.map(work, (1, 2))) == alone
    finally:
        torch.set_num_threads(threads)


def test_evaluation_between_rounds_changes_nothing():
    results = []
    for evaluates in (False, True):
        union = attach(tiny_bert(), Adapter(lora=LORA, bitfit=BitFit()), seed=0)
        for first in (0, 3, 6):
            train(union, class_examples(), plan_of(trainable(union), steps=3), seed=0, first_step=first)
            if evaluates:
                evaluate(union, class_examples(30, seed=9), limit=0, batch_size=16)
        results.append(union.state().digests)
    assert results[0] == results[1]


def test_progress_is_told_after_each_step():
    union = attach(tiny_bert(), Adapter(), seed=0)
    told = []
    outcome = train(
        union,
        class_examples(),
        plan_of(["head"], steps=3),
        seed=0,
        progress=lambda step, loss: told.append((step, loss)),
    )
    assert [step for step, _ in told] == [1, 2, 3]
    assert outcome.mean_loss == pytest.approx(sum(loss for _, loss in told) / 3)


def test_examples_are_counted_as_often_as_they_are_taken():
    union = attach(tiny_bert(), Adapter(), seed=0)
    outcome = train(union, class_examples(5), plan_of(["head"], steps=3), seed=0)
    assert outcome.examples_seen == 15


def test_a_frozen_block_is_refused():
    union = attach(tiny_bert(), Adapter(lora=LORA), seed=0)
    with pytest.raises(SpecMismatch, match=r"lora\.A\.t2"):
        train(union, class_examples(), plan_of(["lora.A.t2"]), seed=0)


def test_no_examples_are_refused():
    union = attach(tiny_bert(), Adapter(), seed=0)
    with pytest.raises(DataInvalid, match="at least one example"):
        train(
            union, EncodedDataset(input_ids=(), labels=np.array([], np.int64), truncated=0), plan_of(["head"]), seed=0
        )


def test_a_loss_that_is_not_finite_stops_the_training():
    union = attach(tiny_bert(), Adapter(bitfit=BitFit()), seed=0)
    with torch.no_grad():
        union.model.classifier.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match="finite loss"):
        train(union, class_examples(), plan_of(["bitfit"]), seed=0)
