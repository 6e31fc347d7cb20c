"""The base is the model that transformers loads: over every architecture of the zoo, from its files as published.

A tenth of the zoo runs in `make test`, all of it in `make slow`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from fedpeft.base import BaseArtifact, build, facts_of, load_model  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.testing.zoo import NAMES, ROWS, SAMPLE, logits_apart, save_model, transformers_model  # noqa: E402

pytestmark = pytest.mark.torch
EVERY = [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in NAMES]
ZOO = [param for param in EVERY if ROWS[param.values[0]]["kind"] != "s2s"]
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
CLASSES = ("bad", "good")


@pytest.mark.parametrize("name", EVERY)
def test_the_base_has_the_logits_of_transformers_own_from_pretrained(zoo: Zoo, name: str):
    directory, artifact = zoo(name)
    assert artifact.manifest.tasks
    for task, entry in artifact.manifest.tasks.items():
        if task == "classify" and ROWS[name]["kind"] == "multimodal":
            continue  # transformers has no such class for the wrapper
        labels = CLASSES if task == "classify" else ()
        model = load_model(artifact, task=task, labels=labels, head_seed=1)
        head = {key: value for key, value in model.state_dict().items() if key in entry.head}
        theirs = transformers_model(directory, task, head, model.config.pad_token_id)
        difference, size = logits_apart(model, theirs, task)
        assert difference <= 2e-5 * max(1.0, size), task


@pytest.mark.parametrize("name", ZOO)
def test_a_tensor_too_many_or_too_few_is_named_and_refused(tmp_path: Path, name: str):
    directory = save_model(name, tmp_path / name)
    weights = load_file(directory / "model.safetensors")
    names = [key for key in weights if ("layer" in key or ".h." in key or "block" in key) and "vision" not in key]
    taken = names[len(names) // 2]
    path, _, leaf = taken.rpartition(".")
    for change, named in (
        ({key: value for key, value in weights.items() if key != taken}, rf"{leaf}|experts"),  # one of several merged
        ({**weights, f"{path}.strange_scale": torch.ones(3)}, "strange_scale"),
    ):
        save_file(change, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigInvalid, match=named):
            build(str(directory), quantize="none", store=tmp_path / "store")


@pytest.mark.parametrize("name", ZOO)
def test_a_text_of_all_positions_is_taken_and_one_beyond_a_table_of_them_is_not(zoo: Zoo, name: str):
    artifact = zoo(name)[1]
    facts, task = facts_of(artifact).model, next(iter(artifact.manifest.tasks))
    model = load_model(artifact, task=task, labels=CLASSES if task == "classify" else (), head_seed=1)
    if facts.positions is None or facts.positions > 512:
        return
    ids = torch.full((1, facts.positions), 7)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).all()
        if facts.positions_are_rows:
            longer = torch.full((1, facts.positions + 1), 7)
            with pytest.raises((IndexError, RuntimeError, ValueError)):
                model(input_ids=longer, attention_mask=torch.ones_like(longer))


@pytest.mark.drawn(1, each=("name",))
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_a_tensor_that_is_not_finite_is_named_and_refused(tmp_path: Path, name: str, scheme: str):
    directory = save_model(name, tmp_path / name)
    weights = load_file(directory / "model.safetensors")
    others_heads = re.compile(r"lm_head|predictions|funnel\.decoder")  # left out: no task reads them
    inside = [key for key in sorted(weights) if re.search(r"\.[01]\.", key) and not others_heads.search(key)]
    smallest = min(inside, key=lambda key: (weights[key].dim(), key))
    weights[smallest].view(-1)[0] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigInvalid, match="finite"):
        build(str(directory), quantize=scheme, store=tmp_path / "store")


@pytest.mark.parametrize("differs", [True, False])
def test_an_output_layer_beside_tied_embeddings_is_used_when_it_differs(tmp_path: Path, differs: bool):
    directory = save_model("llama3-rope", tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.flip(0).contiguous() if differs else embedding.clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    artifact = build(str(directory), quantize="none", store=tmp_path / "store")
    model = load_model(artifact, task="causal-lm", head_seed=0)
    theirs = transformers_model(directory, "causal-lm", {}, model.config.pad_token_id)
    assert logits_apart(model, theirs, "causal-lm")[0] == 0.0
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is not differs


def test_a_tied_tensor_is_found_under_its_other_name(tmp_path: Path):
    directory = save_model("llama3-rope", tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model = load_model(build(str(directory), quantize="none", store=tmp_path / "s"), task="causal-lm", head_seed=0)
    assert logits_apart(model, transformers_model(directory, "causal-lm", {}, None), "causal-lm")[0] == 0.0


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path: Path):
    directory = save_model("llama", tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:-3].clone()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigInvalid, match=r"embed_tokens.*\(320, 64\).*\(317, 64\)"):
        build(str(directory), quantize="none", store=tmp_path / "s")


def test_an_adapters_tensors_in_the_checkpoint_are_refused_with_the_remedy(tmp_path: Path):
    directory = save_model("llama", tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigInvalid, match="merge the adapter"):
        build(str(directory), quantize="none", store=tmp_path / "s")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_half_precision_is_widened_and_not_rounded_again(tmp_path: Path, name: str, dtype: str):
    directory = save_model(name, tmp_path / "m", dtype=getattr(torch, dtype))
    model = load_model(build(str(directory), quantize="none", store=tmp_path / "s"), task="causal-lm", head_seed=0)
    assert logits_apart(model, transformers_model(directory, "causal-lm", {}, None), "causal-lm")[0] <= 1e-5


def test_a_multimodal_checkpoint_gives_its_language_model_and_names_what_it_leaves(tmp_path: Path):
    artifact = build(str(save_model("gemma3-vlm", tmp_path / "m")), quantize="none", store=tmp_path / "s")
    facts = facts_of(artifact)
    assert artifact.manifest.tasks["causal-lm"].architecture == "Gemma3ForCausalLM"
    assert any("vision" in name for name in facts.left_out)
    assert not any("layers" in name and "vision" not in name for name in facts.left_out)
    assert "multimodal" in facts.notes[0]
