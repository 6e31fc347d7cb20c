"""Merged directories: they load where their sources load, and compute what the rule says."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel

from fedpeft.adapter import AdapterState
from fedpeft.catalogue.parallel import Parallel
from fedpeft.cli import main
from fedpeft.cli.adapter import command
from fedpeft.config.model import Adapter, Ia3, Lora
from fedpeft.errors import ConfigInvalid, DataInvalid
from fedpeft.export import export_peft, load_union
from fedpeft.export.merge import merge_adapters, read_exported
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert

pytestmark = pytest.mark.torch

IDS = torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 11, 4]])
LORA = Adapter(lora=Lora(rank=4, targets=("q", "v")))


def exported(folder, adapter: Adapter, *, seed: int = 0, base: str = "pypi:tiny") -> AdapterState:
    """An adapter moved at random from the start of seed 0, as files."""
    union = attach(tiny_bert(), adapter, seed=0)
    draw = np.random.Generator(np.random.Philox(seed))
    start = union.initial_state()
    trainable = [block.block_id for block in start.spec.blocks if block.trainable]
    state = start.replace(
        {b: (start[b] + 0.2 * draw.standard_normal(start[b].shape)).astype(np.float32) for b in trainable}
    )
    union.load(state)
    export_peft(union, folder, base=base)
    return state


def logits_of(state: AdapterState, adapter: Adapter) -> torch.Tensor:
    union = attach(tiny_bert(), adapter, seed=0)
    union.load(state)
    with torch.no_grad():
        found: torch.Tensor = union.model(IDS).logits
    return found


def mean(first: AdapterState, second: AdapterState) -> AdapterState:
    return first.replace({b: ((first[b] + second[b]) / 2).astype(np.float32) for b in first})


@pytest.mark.parametrize("rule", ["linear", "cat"])
def test_merged_lora_loads_with_peft_and_is_the_mean_of_both_models(tmp_path, rule):
    first, second = (exported(tmp_path / name, LORA, seed=seed) for seed, name in enumerate("ab"))
    arguments = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--rule", rule, "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "out").eval()
    with torch.no_grad():
        found = loaded(IDS).logits
    assert torch.allclose(found, logits_of(mean(first, second), LORA), atol=1e-4)
    said = CliRunner().invoke(command, ["inspect", str(tmp_path / "out")], catch_exceptions=False)
    assert "peft.PeftModel" in said.output


@pytest.mark.parametrize(("rule", "rest"), [("svd", {"rank": 2}), ("ties", {}), ("dare", {"density": 0.9})])
def test_every_rule_writes_files_that_peft_loads(tmp_path, rule, rest):
    for seed, name in enumerate("ab"):
        exported(tmp_path / name, LORA, seed=seed)
    sources = [read_exported(tmp_path / name) for name in "ab"]
    merge_adapters(sources, (0.5, 0.5), rule, tmp_path / "out", **rest)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "out").eval()
    with torch.no_grad():
        assert not torch.allclose(loaded(IDS).logits, tiny_bert()(IDS).logits, atol=1e-3)


def test_an_adapter_without_factors_merges_as_the_mean_of_its_values(tmp_path):
    adapter = Adapter(parallel=Parallel(width=4))
    first, second = (exported(tmp_path / name, adapter, seed=seed) for seed, name in enumerate("ab"))
    merge_adapters([read_exported(tmp_path / name) for name in "ab"], (1.0, 1.0), "linear", tmp_path / "out")
    again = load_union(tiny_bert(), tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(again.model(IDS).logits, logits_of(mean(first, second), adapter), atol=1e-5)


@pytest.mark.parametrize("adapter", [Adapter(ia3=Ia3()), Adapter(parallel=Parallel(width=4))])
def test_rules_of_factors_are_refused_where_there_are_none(tmp_path, adapter):
    for seed, name in enumerate("ab"):
        exported(tmp_path / name, adapter, seed=seed)
    with pytest.raises(ConfigInvalid, match="use linear"):
        merge_adapters([read_exported(tmp_path / name) for name in "ab"], (0.5, 0.5), "ties", tmp_path / "out")


def test_adapters_of_two_bases_are_refused(tmp_path):
    exported(tmp_path / "a", LORA)
    exported(tmp_path / "b", LORA, base="pypi:other")
    with pytest.raises(ConfigInvalid, match="one base model, found pypi:other and pypi:tiny"):
        merge_adapters([read_exported(tmp_path / name) for name in "ab"], (0.5, 0.5), "linear", tmp_path / "out")


@pytest.mark.parametrize(("schemes", "refused"), [(("int8", "int8"), True), (("int8", "nf4"), False)])
def test_two_bases_of_one_name_are_two_bases_but_not_one_that_is_quantized_in_two_ways(tmp_path, schemes, refused):
    for name, scheme in zip("ab", schemes, strict=True):
        exported(tmp_path / name, LORA, base="model")
        file = tmp_path / name / "inspect.json"
        said = json.loads(file.read_text()) | {"base_digest": f"sha256:{name}", "base_quantize": scheme}
        file.write_text(json.dumps(said))
    sources = [read_exported(tmp_path / name) for name in "ab"]
    if not refused:
        assert merge_adapters(sources, (0.5, 0.5), "linear", tmp_path / "out").base == "model"
        return
    with pytest.raises(ConfigInvalid, match="two by the name model"):
        merge_adapters(sources, (0.5, 0.5), "linear", tmp_path / "out")


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(DataInvalid, match="exported by fedpeft"):
        read_exported(tmp_path)


def test_a_runs_final_adapter_is_found_in_the_run(tmp_path):
    exported(tmp_path / "adapters" / "final", LORA)
    assert read_exported(tmp_path).settings == json.loads(
        (tmp_path / "adapters" / "final" / "adapter_config.json").read_text()
    )


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a list": lambda path: path.write_bytes(b"[1]"),
    "nothing in it": lambda path: path.write_bytes(b"{}"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def test_a_damaged_file_of_an_export_is_named(tmp_path, capsys):
    exported(tmp_path / "sound", LORA)
    for name in ("adapter_config.json", "inspect.json", "adapter_model.safetensors"):
        for number, damage in enumerate(DAMAGES.values()):
            damaged = tmp_path / f"{number}-{name}"
            shutil.copytree(tmp_path / "sound", damaged)
            damage(damaged / name)
            lines = [["merge", str(tmp_path / "sound"), str(damaged), "--out", str(tmp_path / "out")]]
            lines += [["inspect", str(damaged)]] if name == "inspect.json" else []
            for line in lines:
                assert (name, number, main(["adapter", *line])) == (name, number, 6)
                assert str(damaged / name) in capsys.readouterr().err


def test_a_folder_that_is_no_export_is_said_to_be_none(tmp_path, capsys):
    for line in (["merge", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")], ["inspect", str(tmp_path)]):
        assert main(["adapter", *line]) == 3
        said = capsys.readouterr().err
        assert "found no inspect.json" in said
        assert "Errno" not in said
