"""A whole run of the methods that change over the rounds, from run.toml to the exported adapter."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft.cli import main
from fedpeft_server.run.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

RUN_TOML = """
[run]
name = "scheduled"
[base]
model = "./model"
quantize = "nf4"
[task]
kind = "causal-lm"
max_length = 16
[data]
source = "pairs.jsonl"
partition = { by = "iid", clients = 3 }
[adapter]
adalora = { rank = 4, target_rank = 1, warmup_rounds = 0, prune_until = 2, targets = ["q", "v"] }
relora = { rank = 2, cycles = 3, rounds_each = 1, targets = ["o"] }
diffpruning = { keep = 0.02, prune_round = 2, targets = ["up"] }
fish = { keep = 0.02, targets = ["down"] }
[train]
local_steps = 4
batch_size = 4
learning_rate = 2e-2
[rounds]
count = 3
[performance]
residency = "quantized"
micro_batch = 2
[[device]]
clients = ["*"]
methods = ["adalora", "relora", "diffpruning", "fish"]
"""


def test_methods_that_change_over_the_rounds_run_as_run_toml_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fedpeft.testing.models import save_tiny, tiny_llama

    save_tiny(tiny_llama(), tmp_path / "model")
    pairs = [
        {"prompt": f"what does {article} {colour} {animal} ", "completion": f"{article} {animal} {verb}"}
        for article in ("the", "a")
        for colour in ("red", "green", "blue")
        for animal, verb in (("cat", "sleeps"), ("dog", "runs"), ("bird", "sings"))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs * 2))
    (tmp_path / "run.toml").write_text(RUN_TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    code = main(["simulate", "run.toml", "--no-baselines"])
    out, err = capfd.readouterr()
    assert code == 0, out + err
    (run,) = (tmp_path / "runs").iterdir()
    assert verify_run(run) == ()
    losses = [row.loss for row in read_run(run).rounds]
    assert losses[-1] < losses[0], losses  # type: ignore[operator]

    first, second, last = (load_file(run / "checkpoints" / f"r{r:04d}" / "global.safetensors") for r in (1, 2, 3))
    assert second["adalora.mask"].sum() == 6  # one of four triplets a matrix, of six matrices, chosen together
    assert not first["fish"].any()
    assert not first["fish.fisher"].any()
    assert last["fish"].any()
    assert np.array_equal(first["fish.places"], last["fish.places"])
    assert (second["diffpruning.gate"] > 0).sum() == round(0.02 * second["diffpruning"].size)
    for cycle, (before, after) in enumerate(((None, first), (first, second), (second, last)), 1):
        name = f"relora.B.c{cycle}"
        assert after[name].any()
        assert before is None or not before[name].any()
        assert np.array_equal(after[name], last[name])
