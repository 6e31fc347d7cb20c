"""What autograd keeps of a layer: counted on zeros, against the real model in training."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fedpeft.base.kept_floats import counted_floats
from fedpeft.config.model import Adapter, Lora
from fedpeft.methods import attach, blocks_for
from fedpeft.tasks.form import TEXT
from fedpeft.testing.zoo import save_model, transformers_model
from fedpeft.tuning.batches import Batch
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

LENGTH = 32


def kept(model: nn.Module, layers: int) -> float:
    """Floats a token that training LoRA in the top ``layers`` keeps, as autograd's own hooks tell it."""
    union = attach(model, Adapter(layers=layers, lora=Lora(rank=1, tiers=(1,))), seed=0)
    union.train_only(blocks_for(union.spec, methods=("lora",), rank=None, head=False))
    weights = {parameter.untyped_storage().data_ptr() for parameter in union.model.parameters()}
    found, alive = dict[int, int](), list[torch.UntypedStorage]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor.untyped_storage())
        if (place := alive[-1].data_ptr()) not in weights:
            found[place] = alive[-1].nbytes() // 4
        return tensor

    ids = torch.randint(5, 60, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        SplitForward(union).logits(Batch(indices=None, input_ids=ids, attention_mask=None, labels=ids))
    return sum(found.values()) / LENGTH


@pytest.mark.parametrize(("name", "within"), [("gpt2", 0.03), ("phi3", 0.03), ("bloom", 0.03), ("gpt_oss", 0.1)])
def test_zeros_that_take_no_memory_keep_what_training_keeps(name: str, within: float, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    counted = dict(counted_floats(json.loads((folder / "config.json").read_text()), TEXT))
    two, one = (kept(transformers_model(folder, TEXT, {}, 0), layers) for layers in (2, 1))
    # LoRA of rank 1 adds its products; and zeros go to the same experts, where text is spread over all.
    assert counted[LENGTH] == pytest.approx(two - one, rel=within)


def test_an_architecture_that_cannot_be_run_so_has_no_count() -> None:
    assert counted_floats({"model_type": "mixer"}, TEXT) == ()
