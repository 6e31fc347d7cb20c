"""Building: the same bytes every time, found at once the second time, refused when the model does not fit."""

import contextlib
import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from fedpeft.base import SCHEMES, ArtifactStore, build  # noqa: E402
from fedpeft.base.architecture import read_config, skeleton  # noqa: E402
from fedpeft.base.quantize import PartSpec  # noqa: E402
from fedpeft.base.writer import write_safetensors  # noqa: E402
from fedpeft.errors import ConfigInvalid, ResourceMissing  # noqa: E402
from fedpeft.tasks.form import SEQUENCE, TEXT  # noqa: E402

pytestmark = pytest.mark.torch


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
def test_builds_are_equal_byte_for_byte_over_stores_and_threads(
    tmp_path: Path, request: pytest.FixtureRequest, model: str, scheme: str
):
    source = str(request.getfixturevalue(model))
    threads = torch.get_num_threads()
    artifacts = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            artifacts.append(build(source, quantize=scheme, store=tmp_path / str(count)))
    finally:
        torch.set_num_threads(threads)
    first, second = artifacts
    assert first.digest == second.digest
    assert content(first.path) == content(second.path)
    first.verify()
    assert first.manifest.quantize == scheme


def test_building_again_finds_the_artifact_and_writes_nothing(tmp_path: Path, tiny_bert: Path):
    stages: list[str] = []
    artifact = build(str(tiny_bert), quantize="int8", store=tmp_path, progress=lambda stage, _: stages.append(stage))
    assert stages[-1] == "done"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    stages.clear()
    again = build(str(tiny_bert), quantize="int8", store=tmp_path, progress=lambda stage, _: stages.append(stage))
    assert (again, stages) == (artifact, ["hash", "found"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert build(artifact.digest, quantize="nf4", store=tmp_path) == artifact  # a digest names it whatever the scheme


def test_progress_rises_to_one(tmp_path: Path, tiny_bert: Path):
    fractions: list[float] = []
    build(str(tiny_bert), quantize="int8", store=tmp_path, progress=lambda _, fraction: fractions.append(fraction))
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_another_scheme_or_other_weights_give_another_artifact(tmp_path: Path, tiny_bert: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    one = build(str(copy), quantize="int8", store=tmp_path / "s")
    assert build(str(copy), quantize="nf4", store=tmp_path / "s").digest != one.digest
    weights = load_file(copy / "model.safetensors")
    weights["pooler.dense.bias"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert build(str(copy), quantize="int8", store=tmp_path / "s").digest != one.digest
    assert len(ArtifactStore(tmp_path / "s").ls()) == 3


def test_a_damaged_artifact_is_built_anew(tmp_path: Path, tiny_bert: Path):
    artifact = build(str(tiny_bert), quantize="int8", store=tmp_path)
    good = content(artifact.path)
    (artifact.path / "model.safetensors").unlink()
    again = build(str(tiny_bert), quantize="int8", store=tmp_path)
    assert again.digest == artifact.digest
    assert content(again.path) == good


def test_an_artifact_tells_no_local_path_and_no_library_version(tmp_path: Path, tiny_bert: Path, tiny_llama: Path):
    import transformers

    for model in (tiny_bert, tiny_llama):
        artifact = build(str(model), quantize="none", store=tmp_path / "store")
        for path in artifact.path.iterdir():
            text = path.read_bytes()
            assert str(tmp_path).encode() not in text
            assert str(model).encode() not in text
            assert path.name == "tokenizer.json" or transformers.__version__.encode() not in text


def test_every_quantized_scheme_is_smaller_than_the_one_before(tmp_path: Path, tiny_bert: Path):
    sizes = [
        (build(str(tiny_bert), quantize=scheme, store=tmp_path).path / "model.safetensors").stat().st_size
        for scheme in ("none", "int8", "int4-g32", "nf4")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_names_are_those_of_the_task_model_and_tied_weights_are_stored_once(
    tmp_path: Path, tiny_bert: Path, tiny_llama: Path
):
    bert = build(str(tiny_bert), quantize="int8", store=tmp_path).manifest
    assert bert.tensors["bert.encoder.layer.0.attention.self.query.weight"].encoding == "int8"
    assert bert.tensors["bert.encoder.layer.0.attention.self.query.bias"].encoding == "plain"
    assert {task: entry.head for task, entry in bert.tasks.items()} == {
        "classify": ("classifier.weight", "classifier.bias")
    }
    llama = build(str(tiny_llama), quantize="int4-g32", store=tmp_path).manifest
    assert "lm_head.weight" not in llama.tensors
    assert llama.tensors["model.embed_tokens.weight"].encoding == "int8-g32"
    assert llama.tensors["model.layers.0.self_attn.q_proj.weight"].encoding == "int4-g32"
    assert llama.tensors["model.layers.0.mlp.down_proj.weight"].encoding == "int8"  # 80 columns
    assert {task: entry.head for task, entry in llama.tasks.items()} == {"classify": ("score.weight",), "causal-lm": ()}


def test_legacy_norm_names_are_understood(tmp_path: Path, tiny_bert: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    weights = load_file(copy / "model.safetensors")
    legacy = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    save_file(legacy, copy / "model.safetensors", metadata={"format": "pt"})
    modern = build(str(tiny_bert), quantize="int8", store=tmp_path / "s")
    old = build(str(copy), quantize="int8", store=tmp_path / "s")
    assert old.manifest.tensors == modern.manifest.tensors
    assert (old.path / "model.safetensors").read_bytes() == (modern.path / "model.safetensors").read_bytes()


def test_shards_give_the_weights_of_the_whole(tmp_path: Path, tiny_llama: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    files = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, copy / file)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    whole = build(str(tiny_llama), quantize="int4-g32", store=tmp_path / "s")
    sharded = build(str(copy), quantize="int4-g32", store=tmp_path / "s")
    assert (sharded.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_a_checkpoint_that_lacks_a_layer_is_refused_and_the_layer_named(tmp_path: Path, tiny_bert: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigInvalid, match=r"bert\.encoder\.layer\.1\.output\.dense\.weight"):
        build(str(copy), quantize="int8", store=tmp_path / "s")
    assert list((tmp_path / "s").glob("sha256-*")) == []


@pytest.mark.parametrize(
    "change", [{"model_type": "no-such-architecture"}, {"model_type": "t5", "is_encoder_decoder": True}]
)
def test_architectures_that_are_not_served_are_refused(tmp_path: Path, tiny_bert: Path, change: dict[str, object]):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigInvalid, match=str(change["model_type"])):
        build(str(copy), quantize="int8", store=tmp_path / "s")


ODD = st.sampled_from([None, -1, 0, 3, 10**12, 0.5, math.nan, True, "x", "", [], [1], {}, {"rope_type": "x"}])


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_config_json_that_lies_in_any_one_place_is_refused_in_our_words(
    tiny_bert: Path, tiny_llama: Path, data: st.DataObject
):
    """transformers and torch raise ZeroDivisionError, KeyError, RuntimeError and more on it."""
    model, task = data.draw(st.sampled_from([(tiny_bert, SEQUENCE), (tiny_llama, TEXT)]))
    content = json.loads((model / "config.json").read_text())
    key = data.draw(st.sampled_from([*sorted(content), "rope_scaling", "head_dim", "id2label", "quantization_config"]))
    with contextlib.suppress(ConfigInvalid):
        assert isinstance(skeleton(read_config({**content, key: data.draw(ODD)}), task), nn.Module)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 0), ("hidden_size", -1), ("hidden_act", "wobble"), ("num_hidden_layers", 10**9)],
)
def test_a_config_json_of_which_no_model_can_be_made_is_refused(
    tmp_path: Path, tiny_bert: Path, key: str, value: object
):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | {key: value}))
    with pytest.raises(ConfigInvalid, match=r"config\.json"):
        build(str(copy), quantize="int8", store=tmp_path / "s")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, tiny_bert: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    weights = load_file(copy / "model.safetensors")
    weights["pooler.dense.weight"][3, 4] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigInvalid, match=r"pooler\.dense\.weight.*finite"):
        build(str(copy), quantize="nf4", store=tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_files_that_are_not_safetensors_are_refused(tmp_path: Path, tiny_bert: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    (copy / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigInvalid, match="safetensors"):
        build(str(copy), quantize="int8", store=tmp_path / "s")


def test_unknown_schemes_and_absent_digests_are_refused(tmp_path: Path, tiny_bert: Path):
    with pytest.raises(ConfigInvalid, match="none, int8, nf4, int4-g32"):
        build(str(tiny_bert), quantize="fp8", store=tmp_path)
    with pytest.raises(ResourceMissing, match="fedpeft base build"):
        build("sha256:" + "0" * 64, quantize="int8", store=tmp_path)


def test_the_writer_makes_what_the_library_reads_aligned_to_cache_lines(tmp_path: Path):
    tensors = {
        "b/scale": torch.arange(3, dtype=torch.float16),
        "a/codes": torch.tensor([[1, -2], [3, 4]], dtype=torch.int8),
        "c/value": torch.tensor([1.5], dtype=torch.bfloat16),
        "d/value": torch.arange(6.0).view(2, 3),
    }
    specs = [PartSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "one", specs, [tensors])
    write_safetensors(tmp_path / "two", specs[::-1], [{name: tensor} for name, tensor in reversed(tensors.items())])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    header = int.from_bytes((tmp_path / "one").read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0
    with safe_open(tmp_path / "one", framework="pt") as file:
        assert {name: torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items()} == dict.fromkeys(
            tensors, True
        )
    with pytest.raises(ValueError, match="d/value"):
        write_safetensors(
            tmp_path / "three", specs, [{name: tensors[name] for name in ("a/codes", "b/scale", "c/value")}]
        )
    with pytest.raises(ValueError, match="a/codes"):
        write_safetensors(tmp_path / "three", specs, [tensors | {"a/codes": tensors["a/codes"].T[:1]}])
