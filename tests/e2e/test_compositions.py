"""Adapters made of adapters, from run.toml and the command line: AdapterFusion simulated and deployed, LoRAHub."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.cli import main
from fedpeft.config.load import parse
from fedpeft_server.jobs.model_process import ModelProcess
from fedpeft_server.run.run_view import last_state, read_run
from tests.forked_commands import forking

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

RUN_TOML = """
[run]
name = "{name}"
[base]
model = "./model"
quantize = "nf4"
{adapters}
[task]
kind = "causal-lm"
max_length = 16
[data]
source = "{data}.jsonl"
partition = {{ by = "iid", clients = 3 }}
[adapter]
{adapter}
[train]
local_steps = 4
batch_size = 4
learning_rate = 2e-2
[rounds]
count = 2
[[device]]
clients = ["*"]
methods = ["{method}"]
"""
PFEIFFER = 'bottleneck = { width = 4, placement = "pfeiffer" }'
FUSION = 'fusion = { tasks = ["cats", "dogs"], width = 4 }'
VERBS = {"cats": (("cat", "sleeps"), ("bird", "sings")), "dogs": (("dog", "runs"), ("bird", "runs"))}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a tiny model and the examples of two tasks."""
    from fedpeft.testing.models import save_tiny, tiny_llama

    save_tiny(tiny_llama(), tmp_path / "model")
    for task, animals in VERBS.items():
        pairs = [
            {"prompt": f"what does {article} {colour} {animal} ", "completion": f"{article} {animal} {verb}"}
            for article in ("the", "a")
            for colour in ("red", "green", "blue")
            for animal, verb in animals
        ]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs * 2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    return tmp_path


def trained(world: Path, name: str, *, data: str, adapter: str, adapters: str = "") -> Path:
    """The directory of a finished run."""
    method = adapter.split(maxsplit=1)[0]
    text = RUN_TOML.format(name=name, data=data, adapter=adapter, adapters=adapters, method=method)
    (world / f"{name}.toml").write_text(text)
    assert main(["simulate", f"{name}.toml", "--no-baselines"]) == 0
    (run,) = (world / "runs").glob(f"*-{name}-*")
    return run


def state_of(run: Path) -> AdapterState:
    return last_state(read_run(run))


def test_a_fusion_of_earlier_runs_starts_alike_simulated_and_deployed_and_learns(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {task: trained(world, task, data=task, adapter=PFEIFFER) for task in VERBS}
    table = "adapters = { " + ", ".join(f'{task} = "{run}"' for task, run in runs.items()) + " }"
    fused = trained(world, "fused", data="cats", adapter=FUSION, adapters=table)
    losses = [row.loss for row in read_run(fused).rounds]
    assert losses[-1] < losses[0], losses  # type: ignore[operator]
    for task, run in runs.items():
        assert np.array_equal(state_of(fused)[f"fusion.{task}"], state_of(run)["bottleneck"])  # type: ignore[index]

    # On a coordinator the earlier runs may be its own, named by their directories.
    config = parse((world / "fused.toml").read_text(), source="fused.toml", simulation=True)
    own = {task: run.name for task, run in runs.items()}
    base = config.base.model_copy(update={"model": str(world / "model"), "adapters": own})  # forked elsewhere
    config = config.model_copy(update={"directory": world / "runs", "base": base})
    for name, value in forking().items():
        monkeypatch.setenv(name, value)
    model_process = ModelProcess(world / "deployed-bases")
    try:
        initial = model_process.draft(config).initial
    finally:
        model_process.close()
    first = AdapterState.from_safetensors(
        initial.spec, (fused / "checkpoints" / "r0001" / "global.safetensors").read_bytes()
    )
    for task in VERBS:
        assert initial.digests[f"fusion.{task}"] == first.digests[f"fusion.{task}"]  # type: ignore[index]
    assert initial.digests["fusion"] != first.digests["fusion"]  # type: ignore[index]


def test_the_hub_mixes_runs_for_a_few_examples(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [trained(world, f"lora-{task}", data=task, adapter="lora = { rank = 2 }") for task in VERBS]
    capsys.readouterr()
    few = (world / "dogs.jsonl").read_text().splitlines()[:6]
    (world / "few.jsonl").write_text("\n".join(few))
    line = ["adapter", "hub", *map(str, runs), "--data", "few.jsonl", "--tries", "8", "--out", "mixed"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "after 8 tries" in said, said
    loss = float(said.split("\nloss ")[1].split()[0])
    alone = [float(line.rpartition("loss ")[2].rstrip(")")) for line in said.splitlines()[: len(runs)]]
    assert loss <= min(alone) + 1e-4, said
    assert main(["adapter", "inspect", "mixed"]) == 0
    assert "LORA" in capsys.readouterr().out
