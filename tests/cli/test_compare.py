"""`fedpeft runs compare`: figures and settings side by side."""

import json
from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.ids import RoundId
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory

SOURCE = """
[run]
name = "NAME"
[base]
model = "./model"
[task]
kind = "classify"
labels = ["no", "yes"]
[data]
source = "notes.jsonl"
partition = { by = "iid", clients = 3 }
[adapter]
bitfit = {}
[train]
local_steps = STEPS
[rounds]
count = 3
[[device]]
clients = ["*"]
methods = ["bitfit"]
"""


def run_of(parent: Path, name: str, steps: int, losses: tuple[float | None, ...]) -> Path:
    text = SOURCE.replace("NAME", name).replace("STEPS", str(steps))
    config = parse(text, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    with RunDirectory.create(
        config, source=text, adapter=AdapterSpec(blocks=()), base_digest="sha256:b", command=("fedpeft",)
    ) as run:
        for number, loss in enumerate(losses, 1):
            row = RoundMetrics(
                round=number, loss=loss, accuracy=loss and 1 - loss, evaluators=0 if loss is None else 9,
                train_loss=0.5, metrics={} if loss is None else {"macro_f1": 0.9 - loss},
                devices_invited=3, devices_ready=3, devices_survived=3, bytes_up=10**6,
                bytes_down=2 * 10**6, seconds=2.0,
            )  # fmt: skip
            run.commit(RoundId(number), b"", {}, row)
        return run.path


def test_runs_stand_side_by_side_with_the_settings_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run_of(tmp_path, "few", 4, (0.5, 0.25, 0.375)), run_of(tmp_path, "many", 8, (None, None))
    assert main(["runs", "compare", str(first), str(second), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    few, many = answer["runs"]
    assert (few["loss"], few["accuracy"], few["macro_f1"], few["rounds"], few["up_mb"]) == (0.25, 0.75, 0.65, 3, 3.0)
    assert (many["rounds"], many["seconds"], "loss" in many) == (2, 4.0, False)
    assert answer["settings"] == {"train.local_steps": ["4", "8"]}
    assert main(["runs", "compare", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.startswith(("loss", "train"))] == [
        ["loss", "0.25", "-"],
        ["train.local_steps", "4", "8"],
    ]


def test_one_run_is_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "compare", str(run_of(tmp_path, "few", 4, (0.5,)))]) == 2
    assert "two runs" in capsys.readouterr().err
