"""A mixture's experts: packed one by one, trained by LoRA, and what peft makes of it with ``target_parameters``."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import BaseArtifact, build, load_model  # noqa: E402
from fedpeft.base.experts import PackedExperts, experts_of  # noqa: E402
from fedpeft.config.model import Adapter, Lora  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.export import export_peft  # noqa: E402
from fedpeft.export.merge import merge_adapters, read_exported  # noqa: E402
from fedpeft.methods.union import attach  # noqa: E402
from fedpeft.planner import shape_of  # noqa: E402
from fedpeft.planner.placement import spec_of  # noqa: E402
from fedpeft.testing.zoo import ROWS, save_model  # noqa: E402
from fedpeft.testing.zoo_methods import attached, model_on_meta, peft_apart, stages_apart  # noqa: E402

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
MIXTURES = [name for name, row in ROWS.items() if "experts" in str(row["config"]) and row["kind"] == "lm"]
EVERY = [pytest.param(name, marks=() if name in ("mixtral", "gpt_oss") else pytest.mark.slow) for name in MIXTURES]
ON_EXPERTS = Adapter.having(Lora(rank=4, targets=("auto", "experts")))
APART = ("llama4_text",)  # computes all experts in one product of its own


@pytest.mark.parametrize("name", EVERY)
def test_plain_peft_computes_what_was_trained_on_experts_and_the_planner_counts_it(zoo: Zoo, tmp_path: Path, name: str):
    directory, artifact = zoo(name)
    if name in APART or not list(experts_of(model_on_meta(name))):
        with pytest.raises(ConfigInvalid, match="experts"):
            attached(artifact, "causal-lm", ON_EXPERTS)
        return
    union = attached(artifact, "causal-lm", ON_EXPERTS)
    assert peft_apart(union, directory, "causal-lm", tmp_path).exact
    assert stages_apart(union).exact
    counted = spec_of(shape_of(artifact), ON_EXPERTS, classes=0)
    assert {b.block_id: b.size for b in counted.blocks} == {b.block_id: b.size for b in union.spec.blocks}
    trained = {tensor.name for block in union.spec.blocks for tensor in block.tensors}
    assert any("fedpeft_experts" in path for path in trained)
    assert not any("router" in path or path.endswith(".gate") for path in trained)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("scheme", ["nf4", "int8", "int4-g32"])
def test_packed_experts_compute_to_the_bit_what_unpacked_ones_do_and_have_the_same_gradients(
    tmp_path: Path, name: str, scheme: str
):
    artifact = build(str(save_model(name, tmp_path / name)), quantize=scheme, store=tmp_path / "store")
    stacks = {key: entry for key, entry in artifact.manifest.tensors.items() if len(entry.shape) == 3}
    assert stacks
    assert all(entry.encoding != "plain" for entry in stacks.values())
    ids = torch.randint(5, 250, (2, 20), generator=torch.Generator().manual_seed(1))
    found = []
    for residency in ("dense", "quantized"):
        model = load_model(artifact, task="causal-lm", head_seed=0, residency=residency)  # type: ignore[arg-type]
        union = attach(model, ON_EXPERTS, seed=1)
        assert any(isinstance(one, PackedExperts) for one in model.modules()) is (residency == "quantized")
        blocks = [block.block_id for block in union.spec.blocks if block.trainable]
        trained = [parameter for block in blocks for parameter in union.parameters(block).values()]
        for parameter in trained:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(2))
            parameter.requires_grad_()
        logits = model(input_ids=ids).logits
        (logits**2).mean().backward()
        found.append((logits.detach(), [torch.zeros(1) if p.grad is None else p.grad for p in trained]))
    (dense, gradients), (packed, theirs) = found
    assert torch.equal(dense, packed)
    assert any(bool(one.abs().sum() > 0) for one in gradients)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(gradients, theirs, strict=True))


def test_an_adapter_on_experts_is_not_merged_as_if_its_factors_were_one_matrix(zoo: Zoo, tmp_path: Path):
    union = attached(zoo("mixtral")[1], "causal-lm", ON_EXPERTS)
    for name in ("one", "other"):
        export_peft(union, tmp_path / name, base="x")
    sources = [read_exported(tmp_path / name) for name in ("one", "other")]
    with pytest.raises(ConfigInvalid, match="experts"):
        merge_adapters(sources, [0.5, 0.5], "linear", tmp_path / "merged")


def test_a_base_without_experts_refuses_them_as_a_target(zoo: Zoo):
    with pytest.raises(ConfigInvalid, match=r"one of q, k"):
        attach(load_model(zoo("phi3")[1], task="causal-lm", head_seed=0), ON_EXPERTS, seed=0)


def test_what_peft_has_no_form_for_on_experts_stays_in_the_union_file(zoo: Zoo, tmp_path: Path):
    adapter = Adapter.model_validate({"dora": {"rank": 2, "targets": ("experts",)}, "head": False})
    union = attach(load_model(zoo("mixtral")[1], task="causal-lm", head_seed=0), adapter, seed=0)
    summary = export_peft(union, tmp_path, base="x")
    assert summary.peft_lacks == tuple(block.block_id for block in union.spec.blocks)
