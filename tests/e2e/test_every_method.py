"""Every PEFT method in one run.toml, on an encoder and on a decoder: simulated, summed, exported, loaded again."""

import json
import typing
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.config.model import MethodName
from fedpeft_server.run.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

RUN_TOML = """
[run]
name = "every"
[base]
model = "./model"
quantize = "nf4"
[task]
kind = "{kind}"
max_length = 16
[data]
source = "rows.jsonl"
partition = {{ by = "iid", clients = 3 }}
[adapter]
{sections}
[train]
local_steps = 2
batch_size = 4
learning_rate = 1e-2
[rounds]
count = 2
[[device]]
clients = ["*"]
methods = {methods}
"""
SMALL = {
    "lora": "rank = 2",
    "dora": "rank = 2",
    "adalora": "rank = 2, target_rank = 1, warmup_rounds = 0, prune_until = 1",
    "dylora": "rank = 2",
    "relora": "rank = 1, cycles = 2, rounds_each = 1",
    "qalora": "rank = 1",
    "vera": "rank = 4",
    "diffpruning": "prune_round = 1",
    "bottleneck": "width = 4",
    "parallel": "width = 4",
    "compacter": "width = 4",
    "hypernetwork": "width = 4",
    "prompt": "length = 2",
    "p_tuning": "length = 2, width = 4",
    "prefix": "length = 2, width = 4",
    "p_tuning_v2": "length = 2",
    "llama_adapter": "length = 2",
    "unipelt": "rank = 2, length = 2, width = 4",
    "coda": "width = 4",
}
# AdapterFusion is made of earlier runs: test_compositions.py.
METHODS = [method for method in typing.get_args(MethodName) if method != "fusion"]


def files(folder: Path, family: str, methods: list[str]) -> None:
    """A tiny model, examples and a run.toml with these methods."""
    from fedpeft.testing.models import save_tiny, tiny_bert, tiny_llama

    save_tiny((tiny_bert if family == "encoder" else tiny_llama)(), folder / "model")
    rows = [
        {"text": f"the {colour} {animal}", "label": animal}
        if family == "encoder"
        else {"prompt": f"what does {colour} {animal} ", "completion": f"{animal} {verb}"}
        for colour in ("red", "green", "blue", "a")
        for animal, verb in (("cat", "sleeps"), ("dog", "runs"), ("bird", "sings"))
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows * 2))
    sections = "\n".join(f"{method} = {{ {SMALL.get(method, '')} }}" for method in methods)
    kind = "classify" if family == "encoder" else "causal-lm"
    (folder / "run.toml").write_text(RUN_TOML.format(kind=kind, sections=sections, methods=json.dumps(methods)))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_a_run_toml_with_every_method_runs_and_its_adapter_comes_back(
    world: Path, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file

    methods = [method for method in METHODS if family == "encoder" or method != "bitfit"]
    files(world, family, methods)
    code = main(["simulate", "run.toml", "--no-baselines"])
    out, err = capfd.readouterr()
    assert code == 0, out + err
    (run,) = (world / "runs").iterdir()
    assert verify_run(run) == ()
    assert len(read_run(run).rounds) == 3

    first, last = (load_file(run / "checkpoints" / f"r{r:04d}" / "global.safetensors") for r in (1, 2))
    moved = {block.partition(".")[0] for block, values in last.items() if (values != first[block]).any()}
    assert moved >= set(methods)
    assert main(["adapter", "inspect", str(run / "adapters" / "final")]) == 0
    assert "union.safetensors" in capfd.readouterr().out


def test_a_method_that_the_model_cannot_take_is_refused_with_the_alternatives_and_nothing_starts(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files(world, "decoder", ["bitfit"])
    assert main(["simulate", "run.toml", "--no-baselines"]) == 3
    said = " ".join(capfd.readouterr().err.split())
    assert "bias" in said
    assert "Use lora, ia3, layernorm or bottleneck" in said
    assert not (world / "runs").exists()
