"""The union adapter: identity at the start, sharing, freezing, round trips, counts. Encoder and decoder."""

import typing

import numpy as np
import pytest
import torch
from torch import nn

from fedpeft.adapter import AdapterState
from fedpeft.catalogue.parallel import Parallel
from fedpeft.config.explain import sections_in
from fedpeft.config.model import (
    AdaLora,
    Adapter,
    BitFit,
    Bottleneck,
    DiffPruning,
    Dora,
    DyLora,
    Fish,
    Ia3,
    LayerNorm,
    Lora,
    MethodName,
    QaLora,
    ReLora,
    Vera,
)
from fedpeft.errors import ConfigInvalid, SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach, blocks_for
from fedpeft.methods.union import ATTACH
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

LORA = Lora(rank=4, targets=("q", "v"))
EVERYTHING = Adapter(
    lora=LORA,
    dora=Dora(rank=4),
    adalora=AdaLora(rank=4),
    dylora=DyLora(rank=4),
    relora=ReLora(rank=2, cycles=2),
    qalora=QaLora(rank=1),
    diffpruning=DiffPruning(),
    fish=Fish(),
    vera=Vera(rank=8),
    bitfit=BitFit(),
    layernorm=LayerNorm(),
    ia3=Ia3(),
    bottleneck=Bottleneck(width=4),
)
NO_BIAS = Adapter(
    lora=Lora(rank=4, targets=("q", "v", "up")),
    dora=Dora(rank=4, targets=("k", "gate")),
    adalora=AdaLora(rank=4, targets=("o",)),
    relora=ReLora(rank=2, cycles=2, targets=("gate",)),
    qalora=QaLora(rank=1, targets=("down",)),
    diffpruning=DiffPruning(targets=("o",)),
    vera=Vera(rank=8, targets=("v", "down")),
    layernorm=LayerNorm(),
    ia3=Ia3(),
    bottleneck=Bottleneck(width=4, placement="pfeiffer"),
)
BESIDE = Adapter(layernorm=LayerNorm(), parallel=Parallel(width=4))
MEASURED = {"adalora.score", "diffpruning.gate", "fish.fisher"}  # what devices report and the forward pass does not use
INPUT = torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=INPUT, attention_mask=MASK).logits
    return output


def disturbed(union: UnionAdapter, seed: int = 1) -> AdapterState:
    """A state far from the start in every block."""
    draw = np.random.Generator(np.random.Philox(seed))
    start = union.initial_state()
    return AdapterState(
        start.spec, {b: (v + 0.3 * draw.standard_normal(v.shape)).astype(np.float32) for b, v in start.items()}
    )


BOTH = pytest.mark.parametrize(
    ("build", "adapter"),
    [(tiny_bert, EVERYTHING), (tiny_bert, BESIDE), (tiny_llama, NO_BIAS), (tiny_llama, BESIDE)],
    ids=["encoder", "encoder beside", "decoder", "decoder beside"],
)


@BOTH
@pytest.mark.parametrize("layers", ["all", 2])
def test_at_the_start_the_adapted_model_computes_what_the_base_computes(build, adapter, layers):
    base = logits(build())
    model = build()
    attach(model, adapter.model_copy(update={"layers": layers}), seed=0)
    assert torch.equal(logits(model), base)


@BOTH
def test_base_names_stay_and_every_adapter_tensor_is_one_named_parameter(build, adapter):
    before = set(dict(build().named_parameters()))
    union = attach(build(), adapter, seed=0)
    named = dict(union.model.named_parameters())
    assert before <= set(named)
    grafted = {tensor.name for block in union.spec.blocks if block.method != "head" for tensor in block.tensors}
    assert set(named) - before == grafted


@BOTH
def test_every_block_changes_the_output(build, adapter):
    union = attach(build(), adapter, seed=0)
    start, moved = union.initial_state(), disturbed(union)
    union.load(start)
    base = logits(union.model)
    for block in union.spec.blocks:
        if block.trainable and block.block_id not in MEASURED:
            union.load(start.replace({block.block_id: moved[block.block_id]}))
            assert not torch.allclose(logits(union.model), base, atol=1e-4), block.block_id


@BOTH
def test_extract_after_load_is_bit_exact(build, adapter):
    union = attach(build(), adapter, seed=0)
    state = disturbed(union)
    union.load(state)
    assert union.state().digests == state.digests


@BOTH
def test_a_replica_shares_every_base_tensor_and_owns_its_adapter(build, adapter):
    union = attach(build(), adapter, seed=0)
    union.load(disturbed(union))
    replica = union.replicate()
    own = {tensor.name for block in union.spec.blocks for tensor in block.tensors}
    theirs = dict(replica.model.named_parameters())
    for name, parameter in union.model.named_parameters():
        assert (theirs[name].data_ptr() == parameter.data_ptr()) == (name not in own), name
    buffers = dict(replica.model.named_buffers())
    assert all(buffers[name].data_ptr() == buffer.data_ptr() for name, buffer in union.model.named_buffers())
    assert replica.spec == union.spec
    assert torch.equal(logits(replica.model), logits(union.model))


@BOTH
def test_loading_a_replica_leaves_the_original_alone(build, adapter):
    union = attach(build(), adapter, seed=0)
    before = logits(union.model)
    replica = union.replicate()
    replica.load(disturbed(union))
    assert torch.equal(logits(union.model), before)
    assert not torch.allclose(logits(replica.model), before, atol=1e-4)
    assert replica.initial_state().digests == union.initial_state().digests


def test_a_replica_shares_tensors_that_are_plain_attributes():
    model = tiny_bert()
    model.bert.encoder.layer[0].attention.self.query.scales = torch.ones(7)
    replica = attach(model, EVERYTHING, seed=0).replicate()
    ours, theirs = (m.bert.encoder.layer[0].attention.self.query.scales for m in (model, replica.model))
    assert ours.data_ptr() == theirs.data_ptr()


def test_train_only_marks_the_blocks_and_nothing_else():
    union = attach(tiny_bert(), EVERYTHING, seed=0)
    union.train_only([BlockId("bitfit"), BlockId("lora.B.t2")])
    expected = {t.name for b in ("bitfit", "lora.B.t2") for t in union.spec[BlockId(b)].tensors}
    assert {name for name, p in union.model.named_parameters() if p.requires_grad} == expected


def test_a_frozen_block_cannot_be_trained():
    union = attach(tiny_bert(), EVERYTHING, seed=0)
    with pytest.raises(SpecMismatch, match=r"lora\.A\.t2"):
        union.train_only([BlockId("lora.A.t2")])


def test_a_state_of_another_adapter_is_refused():
    union = attach(tiny_bert(), EVERYTHING, seed=0)
    other = attach(tiny_bert(), Adapter(bitfit=BitFit()), seed=0)
    with pytest.raises(SpecMismatch, match="Expected a state of adapter"):
        union.load(other.initial_state())


def test_every_method_has_a_section_and_a_name_for_devices():
    names = [*typing.get_args(MethodName), "head"]
    assert sorted(ATTACH) == sorted(names)
    sections = [name for name, field in Adapter.model_fields.items() if next(sections_in(field.annotation), None)]
    assert sections == [name for name in ATTACH if name != "head"]


@pytest.mark.parametrize("method", typing.get_args(MethodName))
def test_every_method_can_be_chosen_by_a_device(method):
    settings = {"rank": 1} if method == "qalora" else {}  # 32 inputs are one group
    spec = attach(tiny_bert(), Adapter.model_validate({method: settings}), seed=0).spec
    chosen = blocks_for(spec, methods=[method], rank=None, head=False)
    assert chosen
    assert {spec[block_id].method for block_id in chosen} == {method}


HIERARCHY = Adapter(lora=LORA.model_copy(update={"layers": (1, 2)}), ia3=Ia3(layers=(2, 2)), head=False)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_every_method_sits_in_its_own_layers(build):
    union = attach(build(layers=3), HIERARCHY, seed=0)
    path = union.anatomy.layer_paths[0].removesuffix(".0")
    found = {
        block.method: {int(t.name.removeprefix(f"{path}.").split(".")[0]) for t in block.tensors}
        for block in union.spec.blocks
    }
    assert found == {"lora": {1, 2}, "ia3": {2}}
    assert union.anatomy.first_layer == 1


def test_layers_that_the_model_lacks_are_refused():
    with pytest.raises(ConfigInvalid, match=r"within 0\.\.2"):
        attach(tiny_bert(layers=3), Adapter(ia3=Ia3(layers=(1, 3))), seed=0)


def test_attaching_twice_is_refused():
    model = tiny_bert()
    attach(model, EVERYTHING, seed=0)
    with pytest.raises(ConfigInvalid, match="load the base model anew"):
        attach(model, EVERYTHING, seed=0)


def test_the_initial_state_depends_on_the_seed_only():
    torch.manual_seed(1)
    first = attach(tiny_bert(), EVERYTHING, seed=3).initial_state()
    torch.manual_seed(2)
    assert attach(tiny_bert(), EVERYTHING, seed=3).initial_state().digests == first.digests
    assert attach(tiny_bert(), EVERYTHING, seed=4).initial_state().digests != first.digests


def test_only_top_layers_carry_adapters_when_so_many_are_asked_for():
    union = attach(tiny_bert(layers=3), EVERYTHING.model_copy(update={"layers": 1}), seed=0)
    grafted = [t.name for block in union.spec.blocks if block.method != "head" for t in block.tensors]
    assert grafted
    assert all(name.startswith("bert.encoder.layer.2.") for name in grafted)
    assert union.anatomy.first_layer == 2


def test_more_layers_than_the_model_has_are_refused():
    with pytest.raises(ConfigInvalid, match=r"0\.\.3"):
        attach(tiny_bert(layers=3), EVERYTHING.model_copy(update={"layers": 4}), seed=0)


def test_a_head_alone_adapts_no_layer():
    union = attach(tiny_bert(layers=3), Adapter(), seed=0)
    assert [block.block_id for block in union.spec.blocks] == ["head"]
    assert union.anatomy.first_layer == 3


def test_a_language_model_without_methods_has_nothing_to_train():
    with pytest.raises(ConfigInvalid, match="at least one method"):
        attach(tiny_llama(), Adapter(), seed=0)


def test_a_model_of_another_build_is_refused():
    with pytest.raises(ConfigInvalid, match="transformer"):
        attach(nn.Sequential(nn.Linear(2, 2)), EVERYTHING, seed=0)
