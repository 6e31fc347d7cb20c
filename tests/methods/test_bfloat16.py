"""Adapters in bfloat16 over a float32 or packed base."""

import json
import typing

import numpy as np
import pytest
import torch

from fedpeft.config.model import Adapter, Lora, MethodName
from fedpeft.errors import ConfigInvalid
from fedpeft.export import export_peft
from fedpeft.methods import attach, due_blocks
from fedpeft.testing.methods import on_base
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import evaluate, train

pytestmark = pytest.mark.torch

SMALL = {"qalora": {"rank": 1}, "lora": {"rank": 4}, "adalora": {"rank": 4, "target_rank": 2}}


def adapter_of(method: str, dtype: str) -> Adapter:
    return Adapter.model_validate_json(json.dumps({method: SMALL.get(method, {}), "dtype": dtype}))


@pytest.mark.drawn(1, each=("method",), always=lambda method, **_: method == "bitfit")  # a decoder has no biases
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("method", typing.get_args(MethodName))
def test_every_method_trains_in_bfloat16_near_float32_on_a_packed_base(method, build):
    examples = examples_for(build, 24)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        try:
            union = attach(on_base(build, "nf4"), adapter_of(method, dtype), seed=0)
        except ConfigInvalid:
            assert (method, build) == ("bitfit", tiny_llama)
            return
        if method == "fusion":  # over adapters that say nothing there is nothing to learn
            draw = np.random.default_rng(0)
            union.load(
                union.state().replace(
                    {
                        b.block_id: draw.standard_normal(b.size).astype("f4") * 0.3
                        for b in union.spec.blocks
                        if not b.trainable
                    }
                )
            )
        due = due_blocks(union.spec, union.adapter, 1)
        before = union.state()
        train(union, examples, plan_for(due, steps=6 if method == "diffpruning" else 3, rate=0.01), seed=0)
        changed = {b for b in union.spec.blocks if not np.array_equal(union.state()[b.block_id], before[b.block_id])}
        assert {block.block_id for block in changed} == set(due)
        measured = evaluate(union, examples, limit=0, batch_size=8)
        losses[dtype] = measured.loss_sum / measured.examples
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_values_are_rounded_once_and_the_class_head_is_not():
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4), dtype="bfloat16"), seed=0)
    kinds = {block.method: {p.dtype for p in union.parameters(block.block_id).values()} for block in union.spec.blocks}
    assert kinds == {"lora": {torch.bfloat16}, "head": {torch.float32}}
    draw = np.random.default_rng(0)
    state = union.state().replace(
        {b.block_id: draw.standard_normal(b.size).astype(np.float32) for b in union.spec.blocks}
    )
    union.load(state)
    once = union.state()
    union.load(once)
    assert all(np.array_equal(once[b], union.state()[b]) for b in once)
    for block in union.spec.blocks:
        apart = np.abs(once[block.block_id] - state[block.block_id]).max()
        assert (apart == 0) == (block.method == "head")


def test_an_export_of_bfloat16_values_computes_the_same_with_peft(tmp_path):
    from peft import PeftModel

    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4), dtype="bfloat16"), seed=0)
    draw = np.random.default_rng(0)
    union.load(
        union.state().replace({b.block_id: draw.standard_normal(b.size).astype("f4") * 0.1 for b in union.spec.blocks})
    )
    export_peft(union, tmp_path / "out", base="pypi:tiny")
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "out")
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        expected, found = union.model(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=0.02)
