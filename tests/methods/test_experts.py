"""A mixture's experts: packed one by one, trained by LoRA, and what peft makes of it with ``target_parameters``."""

import re
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Literal

import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from safetensors.numpy import save  # noqa: E402
from transformers import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.configuration_auto import model_type_to_module_name  # noqa: E402

from fedpeft.base import BaseArtifact, build, load_model  # noqa: E402
from fedpeft.base.architecture import skeleton  # noqa: E402
from fedpeft.base.experts import PackedExperts, experts_of  # noqa: E402
from fedpeft.config.model import Adapter, Lora  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.export import export, export_peft  # noqa: E402
from fedpeft.export.merge import merge_adapters, read_exported  # noqa: E402
from fedpeft.grafting import anatomy  # noqa: E402
from fedpeft.grafting.anatomy import dissect  # noqa: E402
from fedpeft.grafting.expert_views import ExpertView  # noqa: E402
from fedpeft.grafting.graft import device_of  # noqa: E402
from fedpeft.grafting.rows import RowView  # noqa: E402
from fedpeft.grafting.stand_ins import view_of  # noqa: E402
from fedpeft.layout import TURNED_EXPERTS, layout_of  # noqa: E402
from fedpeft.methods.lora import attach_lora  # noqa: E402
from fedpeft.methods.union import UnionAdapter, attach  # noqa: E402
from fedpeft.planner import shape_of  # noqa: E402
from fedpeft.planner.placement import spec_of  # noqa: E402
from fedpeft.tasks.form import TAGS  # noqa: E402
from fedpeft.testing.zoo import ROWS, save_model  # noqa: E402
from fedpeft.testing.zoo_methods import attached, model_on_meta, peft_apart, stages_apart  # noqa: E402

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
MIXTURES = [name for name, row in ROWS.items() if "experts" in str(row["config"]) and row["kind"] == "lm"]
FAST = ("mixtral", "gpt_oss", "aria_text")
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MIXTURES]
ON_EXPERTS = Adapter.having(Lora(rank=4, targets=("auto", "experts")))
EXPERTS_ALONE = Adapter.having(Lora(rank=4, targets=("experts",)))
IDS = torch.randint(5, 250, (2, 20), generator=torch.Generator().manual_seed(1))
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


@torch.no_grad()
def logits(model: "torch.nn.Module") -> "torch.Tensor":
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def twin_with_other_values(union: UnionAdapter) -> UnionAdapter:
    """A replica of which every expert's adapter has values of its own."""
    twin, state = union.replicate(), union.state()
    twin.load(state.replace({block.block_id: state[block.block_id] * -0.5 for block in state.spec.blocks}))
    return twin


@pytest.mark.parametrize(("name", "scheme"), [*((name, "none") for name in FAST), ("gpt_oss", "int8")])
def test_a_replica_computes_with_the_experts_adapters_of_its_own(zoo: Zoo, tmp_path: Path, name: str, scheme: str):
    directory, artifact = zoo(name)
    moved = attached(artifact, "causal-lm", EXPERTS_ALONE).state()
    if scheme != "none":
        artifact = build(str(directory), quantize=scheme, store=tmp_path)
    residency: Literal["dense", "quantized"] = "dense" if scheme == "none" else "quantized"
    models = [load_model(artifact, task="causal-lm", head_seed=1, residency=residency) for _ in range(2)]
    assert any(isinstance(one, PackedExperts) for one in models[0].modules()) is (scheme != "none")
    union, fresh = (attach(model, EXPERTS_ALONE, seed=3) for model in models)
    union.load(moved)
    before, twin = logits(union.model), twin_with_other_values(union)
    fresh.load(twin.state())
    assert not torch.allclose(logits(twin.model), before, atol=1e-3)
    assert torch.equal(logits(twin.model), logits(fresh.model))
    assert torch.equal(logits(union.model), before)


def test_gradients_of_a_replica_are_of_its_own_experts_adapters(zoo: Zoo):
    union = attached(zoo("mixtral")[1], "causal-lm", EXPERTS_ALONE)
    twin, blocks = twin_with_other_values(union), [block.block_id for block in union.spec.blocks if block.trainable]
    for one in (union, twin):
        one.train_only(blocks)
    twin.model(input_ids=IDS).logits.square().mean().backward()
    ours, theirs = ([p for b in blocks for p in one.parameters(b).values()] for one in (union, twin))
    assert all(parameter.grad is None for parameter in ours)
    # Every token goes to two experts of four in each of the layers: most of them have some.
    assert sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in theirs) > len(theirs) / 2


def test_a_view_computes_with_the_experts_adapters_that_it_was_given(zoo: Zoo):
    union = attached(zoo("mixtral")[1], "causal-lm", EXPERTS_ALONE)
    before, twin = logits(union.model), twin_with_other_values(union)
    paths = [path for path, _ in union.model.named_modules() if path.endswith("fedpeft_experts")]
    view = view_of(union.model, {path: twin.model.get_submodule(path) for path in paths})
    assert torch.equal(logits(view), logits(twin.model))
    assert not torch.allclose(logits(view), before, atol=1e-3)
    assert torch.equal(logits(union.model), before)


@pytest.mark.parametrize("name", FAST)
def test_no_module_keeps_a_method_of_one_module_which_its_copies_would_call(zoo: Zoo, name: str):
    model = attached(zoo(name)[1], "causal-lm", ON_EXPERTS).model
    bound = [
        f"{path}.{attribute}"
        for path, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, MethodType) and isinstance(value.__self__, torch.nn.Module)
    ]
    assert not bound


@pytest.mark.parametrize("with_artifact", [False, True])
def test_an_export_of_experts_says_when_its_files_compute_something_else(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_artifact: bool
):
    artifact = zoo("mixtral")[1]
    union = attached(artifact, "causal-lm", EXPERTS_ALONE)
    given = artifact if with_artifact else None
    right = export_peft(union, tmp_path / "right", base="x", artifact=given, inputs={"input_ids": IDS})
    assert not right.peft_lacks
    assert right.peft_max_logit_difference < 1e-4

    def save_halves(tensors: dict, metadata: dict) -> bytes:  # type: ignore[type-arg]
        return save({name: value / 2 for name, value in tensors.items()}, metadata=metadata)

    monkeypatch.setattr(export, "save", save_halves)
    wrong = export_peft(union, tmp_path / "wrong", base="x", artifact=given, inputs={"input_ids": IDS})
    if with_artifact:  # refused: the adapter is in our own file
        assert wrong.peft_lacks == tuple(block.block_id for block in union.spec.blocks)
        assert wrong.union_max_logit_difference == 0.0
    else:
        assert wrong.peft_max_logit_difference > 1e-3


@pytest.mark.parametrize(
    ("name", "packed", "adapter"),
    [
        ("mixtral", False, ON_EXPERTS),
        ("mixtral", True, ON_EXPERTS),
        ("phi3", True, Adapter.having(Lora(rank=4, targets=("q",)))),
    ],
)
def test_grafts_on_experts_and_on_rows_are_where_the_base_is(
    zoo: Zoo, tmp_path: Path, name: str, packed: bool, adapter: Adapter
):
    model = model_on_meta(name)
    if packed:
        artifact = build(str(zoo(name)[0]), quantize="int8", store=tmp_path)
        model = load_model(artifact, task="causal-lm", head_seed=0, residency="quantized").to("meta")
    grafted = [parameter for block in attach_lora(dissect(model, "all"), adapter, 0) for parameter in block.parameters]
    assert {parameter.device.type for parameter in grafted} == {"meta"}
    views = {type(module): module for module in model.modules() if isinstance(module, (ExpertView, RowView))}
    assert {device_of(view).type for view in views.values()} == {"meta"}


def test_the_table_of_experts_that_are_stored_turned_is_that_of_transformers():
    turned = re.compile(r"@use_experts_implementation\([^)]*is_transposed=True")
    files = (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")
    folders = {path.parent.name for path in files if turned.search(path.read_text(encoding="utf-8"))}
    kinds = [kind for kind in CONFIG_MAPPING if model_type_to_module_name(kind) in folders]
    assert {CONFIG_MAPPING[kind]().get_text_config().model_type for kind in kinds} == TURNED_EXPERTS


def test_the_experts_of_a_tagger_are_found_the_way_they_are_stored():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_local_experts": 4}
    config = CONFIG_MAPPING["openai_privacy_filter"](**sizes, head_dim=16, num_attention_heads=4, pad_token_id=0)
    parts = dissect(skeleton(config, TAGS), "all")
    views = dict(parts.target_modules(("experts",), wanted_by="adapter.lora"))
    assert {(view.out_features, view.in_features) for view in views.values()} == {(192, 64), (64, 96)}
    assert parts.layout.layers[0].experts["mlp.experts.gate_up_proj"] == (4, (192, 64))
    assert layout_of(
        {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.0.mlp.experts.down_proj": (4, 96, 64)},
        {"model_type": "aria_text"},
    ).layers[0].experts["mlp.experts.down_proj"] == (4, (64, 96))


def test_experts_that_are_stored_as_the_table_does_not_say_are_refused_as_targets_alone(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(anatomy, "TURNED_EXPERTS", frozenset())
    artifact = zoo("gpt_oss")[1]
    assert attach(load_model(artifact, task="causal-lm", head_seed=0), Adapter.having(Lora(rank=2)), seed=0)
    with pytest.raises(ConfigInvalid, match="take the experts out of the targets"):
        attach(load_model(artifact, task="causal-lm", head_seed=0), EXPERTS_ALONE, seed=0)
