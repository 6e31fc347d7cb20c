"""The cost model by what must hold whatever its constants are; benchmarks/planner.py holds the constants."""

from dataclasses import replace

import pytest

from fedpeft.config.model import Adapter, BitFit, Lora
from fedpeft.planner import REFERENCE, MeasuredStep, Workload, calibrate, estimate
from fedpeft.planner.cost import UNCALIBRATED
from fedpeft.testing.shapes import DECODER, MINILM

LORA = Adapter(lora=Lora(rank=8, tiers=(4, 8)), bitfit=BitFit())
WORK = Workload(adapter=LORA, methods=("lora", "bitfit"), rank=8, classes=3, batch_size=32, length=64)


def cost(work: Workload = WORK, **changes):
    return estimate(MINILM, replace(work, **changes), REFERENCE)


def test_bytes_up_are_the_trained_blocks_and_bytes_down_every_block_that_changes():
    # The demo with adapters in all six layers: 73,728 a LoRA factor of rank 8, 25,344 biases, 1,155 in the head.
    both, bias = cost(), cost(methods=("bitfit",), rank=None)
    assert both.trained == 36_864 + 25_344 + 1_155
    assert bias.trained == 25_344 + 1_155
    assert both.bytes_up - bias.bytes_up == 4 * 36_864
    assert both.bytes_down == bias.bytes_down > 4 * both.trained


def test_a_lower_tier_and_a_narrower_ring_send_less():
    assert cost().trained - cost(rank=4).trained == 36_864 // 2
    narrow = estimate(MINILM, WORK, REFERENCE, bits=16)
    assert cost().bytes_up - narrow.bytes_up == 2 * narrow.trained


@pytest.mark.parametrize(
    "more",
    [{"batch_size": 64}, {"length": 128}, {"residency": "dense"}],
)
def test_memory_grows_with_every_thing_that_takes_some(more):
    less = replace(WORK, residency="quantized", batch_size=8)
    assert cost(replace(less, **more)).peak_bytes > cost(less).peak_bytes


def test_evaluating_more_at_once_than_a_step_trains_on_takes_memory():
    assert cost(batch_size=1, eval_examples=64).peak_bytes > cost(batch_size=1, eval_examples=0).peak_bytes


def test_the_head_alone_needs_no_backward_pass_through_layers():
    head = cost(methods=(), rank=None)
    assert head.step_s < 0.6 * cost().step_s
    assert head.activation_bytes < 0.4 * cost().activation_bytes


def test_a_cache_takes_disk_and_no_memory():
    with_cache = cost(cached_examples=100)
    assert with_cache.cache_bytes > 0
    assert with_cache.peak_bytes == cost().peak_bytes


def test_a_cache_saves_the_layers_below():
    top = replace(WORK, adapter=LORA.model_copy(update={"layers": 2}))
    assert cost(top, cached_examples=64).step_s < 0.5 * cost(top).step_s < 0.5 * cost().step_s


def test_micro_batches_need_the_memory_of_their_size_and_the_time_of_the_whole_batch():
    whole, parts = cost(batch_size=32), cost(batch_size=32, micro_batch=8)
    assert parts.peak_bytes == cost(batch_size=8).peak_bytes < whole.peak_bytes
    assert parts.step_s == whole.step_s
    assert cost(batch_size=8, micro_batch=32) == cost(batch_size=8)


def test_a_faster_core_is_faster_and_needs_as_much():
    fast = estimate(MINILM, WORK, replace(REFERENCE, gemm_rate=2 * REFERENCE.gemm_rate))
    assert fast.step_s < cost().step_s
    assert fast.peak_bytes == cost().peak_bytes


def test_a_language_model_pays_for_its_vocabulary():
    work = Workload(adapter=Adapter(lora=Lora()), methods=("lora",), classes=0, batch_size=4, length=64)
    small = replace(DECODER, vocabulary=DECODER.vocabulary // 4)
    assert estimate(DECODER, work, REFERENCE).peak_bytes > estimate(small, work, REFERENCE).peak_bytes
    assert estimate(DECODER, work, REFERENCE).step_s > estimate(small, work, REFERENCE).step_s


def test_a_device_that_measures_what_was_predicted_changes_nothing():
    known = cost()
    loaded = UNCALIBRATED.process_bytes + known.base_bytes
    found = calibrate(
        MINILM,
        WORK,
        REFERENCE,
        MeasuredStep(loaded_bytes=loaded, peak_bytes=loaded + known.activation_bytes, step_s=known.step_s),
    )
    assert found == replace(UNCALIBRATED, measured=True)


def test_a_slow_step_and_a_large_process_are_believed_a_disturbed_one_not_wholly():
    known = cost()
    slow = MeasuredStep(loaded_bytes=2**30, peak_bytes=2**34, step_s=1000 * known.step_s)
    found = calibrate(MINILM, WORK, REFERENCE, slow)
    assert found.process_bytes == 2**30 - known.base_bytes
    assert found.time_factor == 10
    assert found.activation_factor == pytest.approx(1.5**0.5)
    assert estimate(MINILM, WORK, REFERENCE, found).step_s == pytest.approx(10 * known.step_s)
