"""What every method of the catalogue must keep, by being in it: its row is held against the real adapter.

A row that lies fails here: ``test_a_row_that_lies_is_found_out`` holds that, with one lie for each promise.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.catalogue import BY_NAME, AnyMethod, Export
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid
from fedpeft.export import export_peft, load_union
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach, due_blocks
from fedpeft.methods.coda import picks_tokens
from fedpeft.methods.lora import LoraPart
from fedpeft.planner.placement import placed_methods, spec_of
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.plans import plan_for
from fedpeft.testing.shapes import shape_of_model
from fedpeft.tuning import train

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 11, 40]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
FAMILIES = {"encoder": tiny_bert, "decoder": tiny_llama}
METHODS = BY_NAME
ROUNDS = 4


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def settings_of(method) -> Adapter:
    """[adapter] with the method's example and nothing else."""
    return Adapter.model_validate({method.name: method.example, "head": False})


def fits(method, family: str) -> bool:
    return bool(has_row_footprint(method, family).blocks)


@lru_cache
def base(family: str) -> nn.Module:
    """Nobody changes it."""
    return FAMILIES[family]()


@lru_cache
def shape(family: str) -> BaseShape:
    return shape_of_model(base(family))


def attached(method, family: str) -> UnionAdapter:
    return attach(FAMILIES[family](), settings_of(method), seed=6)


@lru_cache(maxsize=2)
def _untouched(name: str, family: str) -> UnionAdapter:
    return attached(METHODS[name], family)


def untouched(method, family: str) -> UnionAdapter:
    """The adapter as it was attached, shared by the promises that only look at it."""
    return _untouched(method.name, family) if METHODS[method.name] is method else attached(method, family)


def moved(method, family: str) -> UnionAdapter:
    """The adapter far from its start in every trainable block."""
    union = attached(method, family)
    draw, start = np.random.Generator(np.random.Philox(5)), union.initial_state()
    far = {
        block.block_id: (start[block.block_id] + 0.2 * draw.standard_normal(block.size)).astype(np.float32)
        for block in union.spec.blocks
        if block.trainable
    }
    far |= {b: np.zeros_like(start[b]) for b in far if b.endswith((".score", ".fisher"))}
    union.load(AdapterState(start.spec, {**start.vectors, **far}))
    return union


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(**INPUTS).logits


def has_row_footprint(method, family: str) -> Any:
    return method.footprint(shape(family), method.example)


def first_layer_input(model: nn.Module) -> torch.Tensor:
    """What enters the lowest layer."""
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3)
    seen = []
    handle = layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model)
    handle.remove()
    return seen[0]


def forward_operations(model: nn.Module) -> float:
    """Of the products of matrices, for one token more: what is computed once a pass or example has no part in it."""
    totals = []
    for length in (12, 24):
        ids = torch.randint(1, 100, (4, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        totals.append(counter.get_total_flops())
    return (totals[1] - totals[0]) / (4 * 12)


@lru_cache
def base_operations(family: str) -> float:
    return forward_operations(base(family))


# The promises: each takes a row and a family, and fails where the row lies.


def it_takes_the_models_it_names(method, family):
    if fits(method, family):
        assert untouched(method, family).spec.blocks
    else:
        with pytest.raises(ConfigInvalid):
            attached(method, family)


def it_starts_as_the_base_if_values_can_switch_it_off(method, family):
    assert torch.equal(logits(untouched(method, family).model), logits(base(family))) == method.switchable


def its_footprint_counts_every_block(method, family):
    own = has_row_footprint(method, family)
    layers = 3
    counted = {
        block_id: (layers * size + own.shared.get(block_id, 0), trainable)
        for sizes, trainable in ((own.frozen, False), (own.blocks, True))
        for block_id, size in sizes.items()
    }
    assert counted == {b.block_id: (b.size, b.trainable) for b in untouched(method, family).spec.blocks}


def its_footprint_counts_the_operations(method, family):
    own = has_row_footprint(method, family)
    if own.tokens:  # they pass through the base, which counts them
        return
    found = (forward_operations(untouched(method, family).model) - base_operations(family)) / 3  # a token and layer
    if method.picks_tokens:
        assert found <= own.flops  # what the layer saves is not counted
        return
    # The counter sees products of matrices alone: gains, biases, activations and longer attention come on top.
    unseen = 32 * 32
    assert found * 0.8 <= own.flops <= found * 1.2 + unseen, (found, own.flops)


def its_tokens_are_those_that_enter_the_layers(method, family):
    if method.picks_tokens:  # fewer enter
        return
    longer = first_layer_input(untouched(method, family).model).shape[1] - IDS.shape[1]
    assert longer == has_row_footprint(method, family).tokens


def it_changes_the_input_if_it_says_so(method, family):
    if method.picks_tokens:
        return
    before, after = first_layer_input(base(family)), first_layer_input(moved(method, family).model)
    assert (before.shape != after.shape or not torch.equal(before, after)) == method.at_input


def it_keeps_for_the_backward_pass_what_it_counts(method, family):
    union, own = attached(method, family), has_row_footprint(method, family)
    tokens = IDS.shape[0] * (IDS.shape[1] + own.tokens)
    most = (3 * own.saved + 3 * own.kept / tokens) if not own.tokens else 0.0
    trained = [block.block_id for block in union.spec.blocks if block.trainable]
    union.train_only(trained)
    known = {p.untyped_storage().data_ptr() for p in union.model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # or an address could be used twice
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        union.model(**INPUTS).logits.sum().backward()
    of = shape(family)
    layer = of.hidden * 16 + 4 * of.inner + 2 * of.heads * (IDS.shape[1] + 8)  # all that a layer may keep
    assert most <= sum(kept.values()) / tokens, "counts more than the whole pass keeps"
    assert sum(kept.values()) / tokens <= 3 * layer + most + of.vocabulary * 4, "keeps more than it counts"


def a_step_moves_what_is_due_and_nothing_else(method, family):
    union, examples = attached(method, family), examples_for(FAMILIES[family], 16)
    if method.made_of_runs:
        draw, start = np.random.Generator(np.random.Philox(5)), union.initial_state()
        frozen = [block for block in union.spec.blocks if not block.trainable]
        union.load(start.replace({b.block_id: draw.standard_normal(b.size).astype(np.float32) for b in frozen}))
    ever = set()
    for round_id in range(1, ROUNDS + 1):
        due = due_blocks(union.spec, union.adapter, round_id)
        start = {name: p.detach().clone() for name, p in union.model.named_parameters()}
        train(union, examples, plan_for(due, steps=2, rate=0.02), seed=0, first_step=2 * (round_id - 1))
        changed = {name for name, p in union.model.named_parameters() if not torch.equal(p, start[name])}
        assert changed <= {tensor.name for block in due for tensor in union.spec[block].tensors}
        assert all(changed & {tensor.name for tensor in union.spec[block].tensors} for block in due)
        ever |= due
        union.load(between_rounds(union.state(), union.adapter, round_id))
    assert ever == {block.block_id for block in union.spec.blocks if block.trainable}


def it_measures_in_a_step_if_it_says_so(method, family):
    parts = [p for p in untouched(method, family).model.modules() if isinstance(p, SteppedPart)]
    assert any(type(part) is not LoraPart for part in parts) == method.measures


def it_picks_tokens_if_it_says_so(method, family):
    layers = untouched(method, family).anatomy.chosen_layers().values()
    assert any(picks_tokens(layer) for layer in layers) == method.picks_tokens


def plain_peft_loads_it_where_the_row_says_so(method, family, folder):
    union = moved(method, family)
    expected = logits(union.model)
    summary = export_peft(union, folder, base="pypi:tiny", inputs=INPUTS)
    if family in method.export.alone:
        assert (summary.peft_type, summary.peft_lacks) == (method.export.peft_type, ())
        loaded = PeftModel.from_pretrained(FAMILIES[family](), folder).eval()
        found = logits(loaded)  # peft answers for virtual tokens too
        assert torch.allclose(found if found.ndim == 2 else found[:, -expected.shape[1] :], expected, atol=2e-5)
    else:
        assert summary.peft_lacks
        assert torch.allclose(logits(load_union(FAMILIES[family](), folder).model), expected, atol=1e-6)


def whoever_serves_it_can_read_its_export(method, family):
    served_by = method.row.served_by
    assert ("peft" in served_by) == bool(method.export.alone)
    plain = method.export.peft_type == "LORA" and not method.export.more
    assert bool({"vLLM", "llama.cpp"} & {*served_by}) == plain


PROMISES = [
    it_takes_the_models_it_names,
    it_starts_as_the_base_if_values_can_switch_it_off,
    its_footprint_counts_every_block,
    its_footprint_counts_the_operations,
    its_tokens_are_those_that_enter_the_layers,
    it_changes_the_input_if_it_says_so,
    it_keeps_for_the_backward_pass_what_it_counts,
    a_step_moves_what_is_due_and_nothing_else,
    it_measures_in_a_step_if_it_says_so,
    it_picks_tokens_if_it_says_so,
    plain_peft_loads_it_where_the_row_says_so,
    whoever_serves_it_can_read_its_export,
]


def keep(promise, method, family, folder) -> None:
    """Hold one row to one promise on one model."""
    if not fits(method, family) and promise is not it_takes_the_models_it_names:
        return
    promise(*((method, family, folder) if promise.__code__.co_argcount == 3 else (method, family)))


# Steps on the second family in `make slow`: tests/methods trains every method on both.
KEPT = [
    pytest.param(
        name,
        family,
        promise,
        marks=pytest.mark.slow if promise is a_step_moves_what_is_due_and_nothing_else and family == "encoder" else (),
    )
    for name in METHODS
    for family in FAMILIES
    for promise in PROMISES
]


@pytest.mark.parametrize(("name", "family", "promise"), KEPT, ids=lambda one: getattr(one, "__name__", one))
def test_it_keeps_its_promise(promise, name, family, tmp_path):
    keep(promise, METHODS[name], family, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_the_union_counts_it_as_alone(name, family):
    method = METHODS[name]
    if fits(method, family):
        union = untouched(method, family)
        counted = spec_of(shape(family), union.adapter, classes=0)
        assert [(b.block_id, b.size) for b in counted.blocks] == [(b.block_id, b.size) for b in union.spec.blocks]
        assert tuple(placed_methods(shape(family), union.adapter)) == (name,)


def times(factor: float, **fields: str) -> Callable[[AnyMethod], AnyMethod]:
    """The row with a number of its footprint so many times too large."""

    def lie(row: AnyMethod) -> AnyMethod:
        def footprint(shape: BaseShape, settings: Any) -> Any:
            true, (field,) = row.footprint(shape, settings), fields
            value = getattr(true, field)
            wrong = {b: round(factor * n) for b, n in value.items()} if fields[field] == "sizes" else factor * value
            return replace(true, **{field: wrong})

        return replace(row, footprint=footprint)

    return lie


def says(**wrong: Any) -> Callable[[AnyMethod], AnyMethod]:
    return lambda row: replace(row, **wrong)


def serves(*programs: str) -> Callable[[AnyMethod], AnyMethod]:
    return lambda row: replace(row, row=replace(row.row, served_by=programs))


def fits_every_base(row: AnyMethod) -> AnyMethod:
    return replace(row, footprint=lambda shape, _: Footprint(blocks={BlockId(row.name): shape.hidden}))


LIES = [
    ("bitfit", "decoder", fits_every_base, it_takes_the_models_it_names),
    ("lora", "encoder", says(switchable=False), it_starts_as_the_base_if_values_can_switch_it_off),
    ("prefix", "decoder", says(switchable=True), it_starts_as_the_base_if_values_can_switch_it_off),
    ("vera", "encoder", times(1.01, blocks="sizes"), its_footprint_counts_every_block),
    ("dora", "decoder", times(2, frozen="sizes"), its_footprint_counts_every_block),
    ("vera", "encoder", times(3.5, flops="number"), its_footprint_counts_the_operations),
    ("fusion", "decoder", times(0.2, flops="number"), its_footprint_counts_the_operations),
    ("prompt", "encoder", times(2, tokens="number"), its_tokens_are_those_that_enter_the_layers),
    ("p_tuning", "decoder", says(at_input=False), it_changes_the_input_if_it_says_so),
    ("ia3", "decoder", says(at_input=True), it_changes_the_input_if_it_says_so),
    ("fusion", "encoder", times(8, saved="number"), it_keeps_for_the_backward_pass_what_it_counts),
    ("adalora", "encoder", says(measures=False), it_measures_in_a_step_if_it_says_so),
    ("lora", "encoder", says(measures=True), it_measures_in_a_step_if_it_says_so),
    ("coda", "decoder", says(picks_tokens=False), it_picks_tokens_if_it_says_so),
    (
        "parallel",
        "encoder",
        says(export=Export(peft_type="LORA", alone=BOTH, more="")),
        plain_peft_loads_it_where_the_row_says_so,
    ),
    (
        "prefix",
        "decoder",
        says(export=Export(peft_type="PREFIX_TUNING", alone=(), more="")),
        plain_peft_loads_it_where_the_row_says_so,
    ),
    ("parallel", "encoder", serves("peft"), whoever_serves_it_can_read_its_export),
    ("dora", "encoder", serves("peft", "vLLM"), whoever_serves_it_can_read_its_export),
]


@pytest.mark.parametrize(("name", "family", "lie", "promise"), LIES)
def test_a_row_that_lies_is_found_out(name, family, lie, promise, tmp_path):
    with pytest.raises((AssertionError, pytest.fail.Exception, ConfigInvalid)):
        keep(promise, lie(METHODS[name]), family, tmp_path)
