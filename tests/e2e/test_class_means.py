"""Whole runs whose head starts from class means, under rules and options that read a round's deltas otherwise."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedpeft.cli import main
from fedpeft_server.run.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

COLOURS, ANIMALS = ("red", "green", "blue"), ("cat", "dog", "bird")
OPTIONS = {
    "nested with momentum": ("", "", 'server_optimizer = "momentum"'),
    "hetlora weighs by deltas": ("", ', train = "both"', 'rule = "hetlora"'),
    "flexlora needs LoRA's deltas": ('[secagg]\nmode = "off"', ', train = "both"', 'rule = "flexlora"'),
    "lora-fair needs the owners' weights": ('[secagg]\nmode = "off"', ', train = "both"', 'rule = "lora-fair"'),
    "scaffold divides by learning rates": ('[train]\nscaffold = true\noptimizer = "sgd"', "", ""),
    "adam scales every coordinate": ("", "", 'server_optimizer = "adam"\nserver_learning_rate = 0.01'),
}


def simulated(
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: str,
    *,
    count: int,
    refresh: int,
) -> tuple[Path, str]:
    """A run's directory and what it said; every client holds one class alone."""
    from fedpeft.testing.models import save_tiny, tiny_bert

    extra, both, aggregate = OPTIONS[case]
    save_tiny(tiny_bert(), where / "model")
    rows = [
        {"text": f"{article} {colour} {animal} {verb}", "label": animal, "owner": animal}
        for article in ("the", "a")
        for colour in COLOURS
        for animal in ANIMALS
        for verb in ("sleeps", "runs", "sings")
    ]
    (where / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (where / "run.toml").write_text(
        f"""
[run]
name = "means"
[base]
model = "./model"
quantize = "int8"
[task]
kind = "classify"
max_length = 64
labels = {json.dumps(ANIMALS)}
[data]
source = "rows.jsonl"
partition = {{ by = "column", column = "owner" }}
[adapter]
layers = 2
head_start = "class-means"
head_refresh = {refresh}
head_learning_rate = 1e-3
lora = {{ rank = 2, tiers = [2]{both} }}
{extra or "[train]"}
local_steps = 3
batch_size = 4
learning_rate = 1e-3
[rounds]
count = {count}
checkpoints_kept = 9
[aggregate]
weight = "uniform"
{aggregate}
[[device]]
clients = ["*"]
methods = ["lora"]
""".replace('mode = "off"\nlocal_steps', 'mode = "off"\n[train]\nlocal_steps')
    )
    monkeypatch.chdir(where)
    monkeypatch.setenv("FEDPEFT_HOME", str(where / "home"))
    code = main(["simulate", "run.toml", "--no-baselines"])
    out, err = capfd.readouterr()
    assert code == 0, out + err
    (run,) = (where / "runs").iterdir()
    assert verify_run(run) == ()
    return run, out + err


@pytest.mark.parametrize("case", OPTIONS)
def test_the_first_round_measures_and_the_head_of_it_is_better_than_chance(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, said = simulated(tmp_path, monkeypatch, capfd, case, count=3, refresh=0)
    assert said.count("class means for the head") == 1
    scores = [row.accuracy for row in read_run(run).rounds]
    assert scores[0] == pytest.approx(1 / 3)  # a head of zeros
    assert scores[1] is not None
    assert scores[1] > 0.5

    states = [load_file(run / "checkpoints" / f"r{r:04d}" / "global.safetensors") for r in (1, 2, 3)]
    up = next(name for name in states[0] if name.startswith("lora.B"))
    assert [bool(state[up].any()) for state in states] == [False, True, True]
    head = states[0]["head"][: 3 * 32].reshape(3, 32)
    assert np.allclose(head.sum(0), 0.0, atol=1e-3)  # what all classes share is gone
    assert 1.0 < np.linalg.norm(head) < 500.0


@pytest.mark.parametrize("case", ["nested with momentum", "flexlora needs LoRA's deltas"])
def test_a_refresh_measures_the_head_again_and_never_trains_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, said = simulated(tmp_path, monkeypatch, capfd, case, count=5, refresh=2)
    assert said.count("class means for the head") == 3
    states = [load_file(run / "checkpoints" / f"r{r:04d}" / "global.safetensors") for r in (1, 3, 4, 5)]
    up = next(name for name in states[0] if name.startswith("lora.B"))
    heads, factors = ([state[name] for state in states] for name in ("head", up))
    changed = [[bool((a != b).any()) for a, b in pairwise(one)] for one in (heads, factors)]
    assert changed == [[True, False, True], [True, True, False]]  # rounds 1 to 3, 4, and 5
    lengths = [float(np.linalg.norm(head)) for head in heads]
    assert max(lengths) < 1.5 * min(lengths), "made of the new sums alone, not added to the old head"
    scores = [row.accuracy for row in read_run(run).rounds]
    assert scores[-1] is not None
    assert scores[-1] > 0.5
