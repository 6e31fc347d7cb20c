"""VeRA: peft's logits from the same pair and vectors, one pair for all matrices, two vectors each."""

import pytest
import torch
from peft import VeraConfig, get_peft_model

from fedpeft.config.model import Adapter, Vera
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach
from fedpeft.methods.vera import VeraPart
from fedpeft.testing.models import tiny_bert, tiny_llama

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 4, 3]])


@pytest.mark.parametrize(
    ("build", "targets", "names"),
    [
        (tiny_bert, ("q", "up"), ["query", "intermediate.dense"]),
        (tiny_llama, ("v", "down"), ["v_proj", "down_proj"]),
    ],
    ids=["bert", "llama"],
)
def test_logits_are_those_of_peft(build, targets, names):
    union = attach(build(), Adapter(vera=Vera(rank=8, targets=targets)), seed=0)
    parts = grafts_of(union.model, VeraPart)
    theirs = get_peft_model(build(), VeraConfig(r=8, target_modules=names))
    draw = torch.Generator().manual_seed(0)
    down = max((p.get_buffer("down") for p in parts.values()), key=lambda cut: cut.shape[1])
    up = max((p.get_buffer("up") for p in parts.values()), key=lambda cut: cut.shape[0])
    with torch.no_grad():
        theirs.base_model.vera_A["default"].copy_(down)
        theirs.base_model.vera_B["default"].copy_(up)
        for path, part in parts.items():
            host = theirs.base_model.model.get_submodule(path)
            for ours, vector in ((part.d, host.vera_lambda_d), (part.b, host.vera_lambda_b)):
                ours.copy_(0.5 * torch.randn(ours.shape, generator=draw))
                vector["default"].copy_(ours)
        assert torch.allclose(union.model(IDS).logits, theirs(IDS).logits, atol=1e-5)
        assert not torch.allclose(union.model(IDS).logits, build()(IDS).logits, atol=1e-2)


def test_all_matrices_share_one_pair_that_is_in_no_block():
    union = attach(tiny_bert(), Adapter(vera=Vera(rank=8, targets=("q", "up", "down")), head=False), seed=0)
    parts = grafts_of(union.model, VeraPart).values()
    for name in ("down", "up"):
        assert len({part.get_buffer(name).untyped_storage().data_ptr() for part in parts}) == 1
    (block,) = union.spec.blocks
    assert block.size == 3 * (3 * 8 + 32 + 64 + 32)
    again = attach(tiny_bert(), Adapter(vera=Vera(rank=8, targets=("q", "up", "down")), head=False), seed=1)
    assert not torch.equal(next(iter(parts)).get_buffer("down"), grafts_of(again.model, VeraPart).popitem()[1].down)
