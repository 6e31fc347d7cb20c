"""Plans: pure, within the limits, the best that fits, and a reason for what was not taken."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.config.model import Adapter, BitFit, Ia3, Lora
from fedpeft.errors import ConfigInvalid
from fedpeft.planner import REFERENCE, DeviceLimits, Menu, Workload, estimate, menu_of, plan
from fedpeft.planner.cost import MEMORY_ERROR, TIME_ERROR
from fedpeft.testing.shapes import DECODER, MINILM

MIB = 2**20
ADAPTER = Adapter(lora=Lora(rank=8, tiers=(4, 8)), bitfit=BitFit())
LIKE = Workload(adapter=ADAPTER, methods=("lora",), rank=8, classes=3, batch_size=32, length=64, eval_examples=64)
MENU = Menu(shape=MINILM, workloads=menu_of(MINILM, ADAPTER, LIKE))
EASY = DeviceLimits(fit_deadline_s=1800, upload_deadline_s=120)


def limits(**changes) -> DeviceLimits:
    return DeviceLimits(**({"fit_deadline_s": 1800.0, "upload_deadline_s": 120.0} | changes))


def test_a_device_without_narrow_limits_trains_everything():
    chosen = plan(REFERENCE, EASY, MENU)
    assert (chosen.workload.methods, chosen.workload.rank, chosen.workload.head) == (("lora", "bitfit"), 8, True)
    assert chosen.workload.residency == "dense"
    assert chosen.rejected == ()
    assert "no larger choice is offered by the run, and peft can run it" in chosen.sentence


def test_a_thin_uplink_takes_the_blocks_that_it_can_send_and_says_why_not_more():
    everything = plan(REFERENCE, EASY, MENU).estimate
    chosen = plan(REFERENCE, limits(uplink_bits_s=8 * everything.bytes_up / 120 * 0.7), MENU)
    assert chosen.workload.rank == 8  # rank before other methods: lora serves everywhere
    assert chosen.workload.methods == ("lora",)
    (first,) = chosen.rejected
    assert "lora r8 + bitfit + head" in first.what
    assert "to upload" in first.reason
    assert first.what in chosen.sentence


def test_a_thinner_uplink_takes_a_lower_tier_and_the_thinnest_a_method_of_few_bytes():
    ranks = [plan(REFERENCE, limits(uplink_bits_s=rate), MENU).workload for rate in (9_000, 4_000)]
    assert [str(one) for one in ranks] == ["lora r4 + head", "head"]


def test_little_memory_keeps_the_base_packed_before_it_gives_up_a_method():
    dense = plan(REFERENCE, EASY, MENU).estimate
    chosen = plan(REFERENCE, limits(ram_bytes=round(dense.peak_bytes * (1 + MEMORY_ERROR)) - MIB), MENU)
    assert chosen.workload.residency == "quantized"
    assert chosen.workload.methods == ("lora", "bitfit")
    assert "because without that it needs" in chosen.sentence


def test_less_memory_computes_layers_again_before_it_gives_up_a_method():
    packed = plan(REFERENCE, EASY, replace(MENU, workloads=[w for w in MENU.workloads if w.residency == "quantized"]))
    limit = round(packed.estimate.peak_bytes * (1 + MEMORY_ERROR)) - MIB
    chosen = plan(REFERENCE, limits(ram_bytes=limit), MENU)
    assert chosen.workload.checkpointing
    assert chosen.workload.methods == ("lora", "bitfit")
    assert chosen.estimate.step_s > packed.estimate.step_s
    assert "computed again in the backward pass" in chosen.sentence


def test_a_short_deadline_leaves_the_head():
    full = plan(REFERENCE, EASY, MENU).estimate
    chosen = plan(REFERENCE, limits(fit_deadline_s=full.round_s * 0.8), MENU)
    assert chosen.workload.methods == ()
    assert any("to train a round" in one.reason for one in chosen.rejected)


def test_a_device_for_which_nothing_fits_is_told_what_the_least_would_need():
    with pytest.raises(ConfigInvalid) as refused:
        plan(REFERENCE, limits(ram_bytes=200 * MIB), MENU)
    text = str(refused.value)
    assert "for head" in text
    assert "200 MiB allowed" in text
    assert "Raise the limit" in text


def test_without_a_ram_limit_what_is_free_is_the_limit():
    with pytest.raises(ConfigInvalid, match="200 MiB allowed"):
        plan(replace(REFERENCE, available_bytes=200 * MIB), EASY, MENU)


def test_a_base_without_biases_is_not_offered_bitfit_and_a_language_model_no_head():
    adapter = Adapter(lora=Lora(rank=4), ia3=Ia3(), bitfit=BitFit())
    like = Workload(adapter=adapter, methods=("lora",), classes=0, batch_size=2, length=64)
    found = menu_of(DECODER, adapter, like)
    assert {one.methods for one in found} == {("lora",), ("ia3",), ("lora", "ia3")}
    assert not any(one.head for one in found)


def test_a_choice_of_layers_and_batches_is_cached_only_where_layers_are_frozen():
    found = menu_of(MINILM, ADAPTER, replace(LIKE, cached_examples=100), layers=(2, 6), batch_sizes=(8, 32))
    assert {(one.adapter.layers, one.batch_size) for one in found} == {(2, 8), (2, 32), (6, 8), (6, 32)}
    assert all((one.cached_examples > 0) == (one.adapter.layers == 2) for one in found)


@settings(deadline=None, max_examples=25)  # time says nothing here; an example is a second of work
@given(
    ram=st.integers(300, 3000), uplink=st.floats(1e3, 1e8), deadline=st.floats(1, 100), tiers=st.sampled_from([1, 2, 3])
)
def test_every_plan_keeps_every_limit_by_the_stated_error_and_is_pure(ram, uplink, deadline, tiers):
    adapter = Adapter(lora=Lora(rank=2**tiers), bitfit=BitFit(), ia3=Ia3())
    menu = Menu(shape=MINILM, workloads=menu_of(MINILM, adapter, LIKE))
    bounds = limits(ram_bytes=ram * MIB, uplink_bits_s=uplink, fit_deadline_s=deadline)
    try:
        chosen = plan(REFERENCE, bounds, menu)
    except ConfigInvalid:
        for one in menu.workloads:
            cost = estimate(MINILM, one, REFERENCE)
            assert (
                cost.peak_bytes * (1 + MEMORY_ERROR) >= ram * MIB
                or cost.round_s * (1 + TIME_ERROR) > deadline
                or 8 * cost.bytes_up / uplink > 120
            )
        return
    assert chosen.estimate.peak_bytes * (1 + MEMORY_ERROR) <= ram * MIB + 1
    assert chosen.estimate.round_s * (1 + TIME_ERROR) <= deadline
    assert 8 * chosen.estimate.bytes_up / uplink <= 120
    assert plan(REFERENCE, bounds, menu) == chosen
    shuffled = Menu(shape=MINILM, workloads=menu.workloads[::-1])
    assert plan(REFERENCE, bounds, shuffled).workload == chosen.workload
