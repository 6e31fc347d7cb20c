"""Any Opacus user can train our grafts: the gradients of GradSampleModule are those of the examples, one by one."""

import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from fedpeft.api.opacus import UNSUPPORTED, register
from fedpeft.catalogue import BY_NAME
from fedpeft.config.adapter import Adapter, MethodName
from fedpeft.methods import attach, due_blocks
from fedpeft.methods.union import UnionAdapter
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.tuning.batches import collate
from fedpeft.tuning.hook_check import example_losses, hooked_gradients
from fedpeft.tuning.per_sample_hooks import Hooked, micro_gradients
from fedpeft.tuning.split_forward import SplitForward

pytestmark = pytest.mark.torch

SMALL = {
    "lora": {"rank": 4, "tiers": (2, 4), "targets": ("q", "v", "down")},
    "qalora": {"rank": 1},
    "bottleneck": {"width": 4},
    "parallel": {"width": 4},
    "prompt": {"length": 4},
    "p_tuning": {"length": 4},
    "prefix": {"length": 4},
    "p_tuning_v2": {"length": 4},
    "adalora": {"rank": 4, "target_rank": 2},
}
HERE = [name for name in get_args(MethodName) if name not in UNSUPPORTED]


def moved(build, adapter: dict) -> tuple[UnionAdapter, dict[str, torch.nn.Parameter]]:
    """Away from the start, where many gradients vanish."""
    union = attach(build(), Adapter.model_validate(adapter), seed=0)
    blocks = due_blocks(union.spec, union.adapter, 1)
    union.train_only(blocks)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in union.spec.blocks:
            for parameter in union.parameters(block.block_id).values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return union, {name: p for block in sorted(blocks) for name, p in union.parameters(block).items()}


def opacus_gradients(union: UnionAdapter, trained: dict[str, torch.nn.Parameter], examples) -> list[Tensor]:
    from opacus.grad_sample import GradSampleModule

    register()
    split = SplitForward(union)
    for module in union.model.modules():  # Opacus looks at modules in training; dropout stays off
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))
    wrapped = GradSampleModule(union.model, loss_reduction="sum", strict=False)
    try:
        batch = collate(examples, np.arange(len(examples)), pad_id=split.pad_id, device=split.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example_losses(split, batch, None).sum().backward()
        return [parameter.grad_sample for parameter in trained.values()]
    finally:
        wrapped.to_standard_module()
        union.model.eval()


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


CASES = [
    (method, build)
    for method in HERE
    for build in (tiny_bert, tiny_llama)
    if (method, build) != ("bitfit", tiny_llama)  # it has no biases
]


@pytest.mark.parametrize(("method", "build"), CASES)
def test_opacus_has_the_gradients_of_the_examples_one_by_one_and_so_have_our_hooks(method, build) -> None:
    examples = token_examples(4) if build is tiny_llama else class_examples(4)
    union, trained = moved(build, {method: SMALL.get(method, {})})
    theirs = flat(opacus_gradients(union, trained, examples))
    split = SplitForward(union)
    batch = collate(examples, np.arange(4), pad_id=split.pad_id, device=split.device)
    ours = flat(hooked_gradients(Hooked(union.model, trained), SplitForward(union, every_position=True), batch, None))
    for index in range(4):
        one = collate(examples, np.array([index]), pad_id=split.pad_id, device=split.device)
        exact = flat(micro_gradients(example_losses(split, one, None)[0], list(trained.values())))[0]
        assert float(exact.norm()) > 0
        assert float((theirs[index] - exact).norm()) <= 1e-5 * float(exact.norm())
        assert float((ours[index] - theirs[index]).norm()) <= 1e-5 * float(exact.norm())


def test_lora_with_both_factors_trained_has_them_too() -> None:
    union, trained = moved(tiny_bert, {"lora": {"rank": 4, "tiers": (2, 4), "train": "both"}})
    examples = class_examples(4)
    theirs = flat(opacus_gradients(union, trained, examples))
    assert any(".A." in name for name in trained)
    split = SplitForward(union)
    for index in range(4):
        one = collate(examples, np.array([index]), pad_id=split.pad_id, device=split.device)
        exact = flat(micro_gradients(example_losses(split, one, None)[0], list(trained.values())))[0]
        assert float((theirs[index] - exact).norm()) <= 1e-5 * float(exact.norm())


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("method", sorted(name for name in UNSUPPORTED if not BY_NAME[name].measures))
def test_what_opacus_cannot_do_it_does_not_do_silently(method: str, build) -> None:
    """Some gradient is missing, or Opacus raises: never a wrong one."""
    union, trained = moved(build, {method: SMALL.get(method, {})})
    try:
        found = opacus_gradients(union, trained, token_examples(4) if build is tiny_llama else class_examples(4))
    except Exception:
        return
    assert any(gradient is None for gradient in found)


def test_what_measures_in_a_step_is_what_the_catalogue_says() -> None:
    measuring = {name for name in UNSUPPORTED if "measures" in UNSUPPORTED[name]}
    assert measuring == {name for name in get_args(MethodName) if BY_NAME[name].measures}


def test_opacus_own_engine_trains_lora_privately() -> None:
    """PrivacyEngine over our grafts: the step is the clipped sum of the gradients of the examples."""
    from opacus.optimizers import DPOptimizer

    union, trained = moved(tiny_bert, {"lora": {"rank": 4}})
    examples = class_examples(4)
    exact = flat(opacus_gradients(union, trained, examples))
    parameters = list(trained.values())
    for parameter, gradient in zip(parameters, exact.split([p.numel() for p in parameters], 1), strict=True):
        parameter.grad_sample = gradient.view(4, *parameter.shape)
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=0.1, expected_batch_size=4,
        loss_reduction="sum",
    )  # fmt: skip
    before = torch.cat([p.detach().flatten() for p in parameters])
    optimizer.step()
    step = before - torch.cat([p.detach().flatten() for p in parameters])
    clipped = (exact * (0.1 / exact.norm(dim=1)).clamp(max=1.0)[:, None]).sum(0)
    assert torch.allclose(step, clipped, rtol=1e-3, atol=1e-6)
