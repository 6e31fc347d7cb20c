"""CUDA: what is chosen there; and on a CPU, that bfloat16 products over a packed base give usable gradients."""

import numpy as np
import pytest
import torch

from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import ResourceMissing
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert, tiny_llama, token_examples
from fedpeft.testing.packed import pack
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import objective, train
from fedpeft.tuning.accelerator import chosen_device, products
from fedpeft.tuning.objective import Objective
from fedpeft.tuning.train import make_optimizer

pytestmark = pytest.mark.torch

ADAPTER = Adapter(lora=Lora(rank=4, targets=("q", "v", "down")))
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the accelerator's path is not run")


def plan_of(union, optimizer="adamw"):
    return plan_for(trainable(union), steps=4, rate=0.01, optimizer=optimizer, weight_decay=0.01)


def gradient(union):
    union.train_only(trainable(union))
    step = Objective(union, token_examples(8), cache=None, logit_offset=None, micro_batch=0, checkpointing=False)
    loss = step.backward(np.arange(8))
    found = torch.cat([p.grad.float().flatten().cpu() for p in union.model.parameters() if p.grad is not None])
    return loss, found


@WITHOUT_CUDA
def test_a_machine_without_cuda_says_so_before_anything_is_loaded():
    with pytest.raises(ResourceMissing, match="Expected a CUDA device"):
        chosen_device("cuda")
    assert chosen_device("cpu") == torch.device("cpu")


def test_on_a_cpu_the_paged_optimizer_is_adamw_to_the_bit():
    states = []
    for optimizer in ("adamw", "paged-adamw"):
        union = attach(tiny_llama(), ADAPTER, seed=0)
        train(union, token_examples(16), plan_of(union, optimizer), seed=0)
        states.append(union.state())
    assert states[0].digests == states[1].digests


@pytest.mark.parametrize("encoding", ["nf4", "int8"])
def test_bfloat16_products_over_a_packed_base_give_float32s_gradient_nearly(encoding, monkeypatch):
    loss, exact = gradient(attach(pack(tiny_llama(), encoding), ADAPTER, seed=0))
    monkeypatch.setattr(objective, "products", lambda _: torch.autocast("cpu", dtype=torch.bfloat16))
    rounded_loss, rounded = gradient(attach(pack(tiny_llama(), encoding), ADAPTER, seed=0))
    assert rounded_loss == pytest.approx(loss, rel=0.01)
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


def test_float32_it_is_on_a_cpu():
    with products(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_packed_model_moves_with_its_packed_parts():
    moved = pack(tiny_bert(), "nf4").to("meta")
    layer = moved.bert.encoder.layer[0].attention.self.query
    assert {part.device.type for part in layer.packed.parts.values()} == {"meta"}


@ON_CUDA
def test_a_step_on_cuda_is_nearly_the_step_on_a_cpu():
    loss, exact = gradient(attach(pack(tiny_llama(), "nf4"), ADAPTER, seed=0))
    found_loss, found = gradient(attach(pack(tiny_llama(), "nf4").to("cuda"), ADAPTER, seed=0))
    assert found_loss == pytest.approx(loss, rel=0.01)
    assert (found - exact).norm() < 0.05 * exact.norm()


@ON_CUDA
def test_the_paged_optimizer_of_cuda_is_bitsandbytes_own_and_learns():
    pytest.importorskip("bitsandbytes")
    union = attach(tiny_llama().to("cuda"), ADAPTER, seed=0)
    plan = plan_of(union, "paged-adamw")
    blocks = {block: list(union.parameters(block).values()) for block in plan.learning_rates}
    assert type(make_optimizer(blocks, plan)).__name__ == "PagedAdamW8bit"
    first = train(union, token_examples(16), plan, seed=0)
    assert train(union, token_examples(16), plan, seed=0).mean_loss < first.mean_loss
