"""A union cut for a class of devices: the best LoRA of the class's rank, and exactly the blocks that are kept."""

import numpy as np
import pytest
import torch

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import read_factors
from fedpeft.config.model import Adapter, BitFit, DyLora, Ia3, Lora
from fedpeft.errors import ConfigInvalid
from fedpeft.export.device_class import class_adapter, class_state
from fedpeft.grafting.graft import grafts_of
from fedpeft.methods import attach
from fedpeft.methods.dylora import DyLoraPart
from fedpeft.testing.models import tiny_bert

pytestmark = pytest.mark.torch

LORA = Lora(rank=8, tiers=(2, 4, 8), targets=("q", "v", "down"), scaling="rslora", carried_rank=3)
UNION = Adapter(lora=LORA, bitfit=BitFit(), ia3=Ia3())
INPUTS = {"input_ids": torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 4, 3]])}


@pytest.fixture
def union():
    """Far from its start in every block, carried columns included."""
    made = attach(tiny_bert(), UNION, seed=1)
    draw, start = np.random.Generator(np.random.Philox(2)), made.initial_state()
    made.load(
        AdapterState(
            start.spec,
            {b.block_id: start[b.block_id] + 0.2 * draw.standard_normal(b.size, np.float32) for b in start.spec.blocks},
        )
    )
    return made


def cut(union, **choice):
    part = attach(tiny_bert(), class_adapter(UNION, **choice), seed=1)
    part.load(class_state(union.state(), part.initial_state()))
    return part


@torch.no_grad()
def logits(union):
    return union.model(**INPUTS).logits


def test_a_class_that_affords_the_whole_rank_has_the_unions_logits(union):
    part = cut(union, rank=11, methods=None)
    assert torch.allclose(logits(part), logits(union), atol=1e-4)
    assert part.adapter.lora.carried_rank == 0


def test_a_lower_rank_keeps_the_nearest_product_of_that_rank(union):
    part = cut(union, rank=2, methods=("lora",))
    whole, kept = (read_factors(one.spec, one.state()) for one in (union, part))
    scale, own_scale = LORA.scale / 8**0.5, part.adapter.lora.scale
    for path, full in whole.items():
        dense = scale * (full.up @ full.down + full.carried_up @ full.carried_down)
        singular = np.linalg.svd(dense, compute_uv=False)
        gap = np.linalg.norm(dense - own_scale * kept[path].up @ kept[path].down)
        assert gap == pytest.approx(np.linalg.norm(singular[2:]), rel=1e-4)


def test_dylora_is_cut_to_its_first_ranks_which_are_what_it_trained():
    adapter = Adapter(dylora=DyLora(rank=6), bitfit=BitFit())
    whole = attach(tiny_bert(), adapter, seed=1)
    draw, start = np.random.Generator(np.random.Philox(2)), whole.initial_state()
    whole.load(start.replace({b: v + 0.2 * draw.standard_normal(v.size, np.float32) for b, v in start.items()}))
    part = attach(tiny_bert(), class_adapter(adapter, rank=2, methods=None), seed=9)
    part.load(class_state(whole.state(), part.initial_state()))
    assert part.adapter.dylora.rank == 2
    assert not torch.allclose(logits(part), logits(whole), atol=1e-3)
    for module in grafts_of(whole.model, DyLoraPart).values():
        module.active = 2  # as in a step that drew rank 2
    assert torch.equal(logits(part), logits(whole))


def test_methods_that_are_left_out_have_no_block_and_the_others_keep_their_values(union):
    part = cut(union, rank=None, methods=("lora", "bitfit"))
    assert {block.method for block in part.spec.blocks} == {"lora", "bitfit", "head"}
    assert all(np.array_equal(part.state()[block_id], union.state()[block_id]) for block_id in part.state())


@pytest.mark.parametrize("choice", [{"rank": 12, "methods": None}, {"rank": 2, "methods": ("bitfit",)}])
def test_a_rank_that_is_not_there_is_refused(choice):
    with pytest.raises(ConfigInvalid, match="Expected LoRA of at least rank"):
        class_adapter(UNION, **choice)


def test_a_method_that_is_not_there_is_refused():
    with pytest.raises(ConfigInvalid, match="found vera"):
        class_adapter(UNION, rank=None, methods=("lora", "vera"))
