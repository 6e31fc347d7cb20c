"""A transformers script plus three lines in a federation of processes: the secure sum's adapter is the simulation's."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import fedpeft
from fedpeft.api.progress import NoProgress
from fedpeft.config import parse
from fedpeft.fork_server import ForkedProcess
from fedpeft_client.home import DeviceHome
from fedpeft_server.run.run_view import last_state, read_run, verify_run
from fedpeft_sim import local_start
from fedpeft_sim.local_run import follow, provision
from tests.forked_commands import SharedServer, fork_command

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parent / "scripts" / "train_birds.py"
RUN = """
[base]
model = "{base}"
quantize = "none"
[task]
kind = "classify"
max_length = 16
[data]
source = "{data}"
partition = {{ by = "iid", clients = 3 }}
[adapter]
lora = {{ rank = 4 }}
[train]
local_steps = 2
optimizer = "sgd"
learning_rate = 0.1
batch_size = 32
[rounds]
count = 1
[[device]]
clients = ["*"]
methods = ["lora"]
"""
"""With as many examples in a step as a client has, so that their order does not matter; SGD, because AdamW makes a
whole step of a gradient that is rounding alone."""


def test_a_trainer_script_and_three_lines_take_part_in_secure_rounds_and_train_what_fedpeft_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_start, "ForkServer", SharedServer)
    from fedpeft.testing.models import save_tiny, tiny_bert

    save_tiny(tiny_bert(layers=1, classes=2), tmp_path / "base")
    rows = [{"text": f"the {'red' if i % 2 else 'blue'} bird {i}", "label": "ab"[i % 2]} for i in range(60)]
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RUN.format(base=tmp_path / "base", data=tmp_path / "birds.jsonl")
    (tmp_path / "run.toml").write_text(text)
    simulated = fedpeft.simulate(tmp_path / "run.toml", out=tmp_path / "simulated", store=tmp_path / "store")

    config = parse(text, source="run.toml", simulation=True).model_copy(update={"directory": tmp_path / "local"})
    population, federation, base = provision(config, NoProgress(), store=tmp_path / "store")
    *others, attached = population.clients
    script: ForkedProcess | None = None
    with federation:
        federation.until_ready()
        for client in others:
            federation.start_device(client.name)
        home = DeviceHome(federation.path / "devices" / attached.name)
        federation.enrol(home, attached.name)
        for side, records in (("train", attached.train), ("test", attached.held_out)):
            lines = [json.dumps({key: row[key] for key in ("text", "label")}) + "\n" for row in records.rows]
            (home.path / f"{side}.jsonl").write_text("".join(lines))
        try:
            with (tmp_path / "script.log").open("wb") as log:
                tests = Path(__file__).parents[1]
                path = os.pathsep.join([str(tests), *(entry for entry in sys.path if entry)])
                script = fork_command(
                    "a_script",
                    [*map(str, (SCRIPT, home.path, tmp_path / "base", home.path))],
                    environment={**os.environ, "PYTHONPATH": path},
                    output=log.fileno(),
                )
            federation.until_online()
            federation.submit(population.config, base)
            run = follow(federation, NoProgress())
        finally:
            if script is not None:
                script.kill()
                script.wait()
    said = (tmp_path / "script.log").read_text()
    view = read_run(run)
    assert verify_run(run) == ()
    assert [row.devices_survived for row in view.rounds] == [3, 3], said
    assert "train_runtime" in said, "the script's own Trainer has trained"
    ours = last_state(simulated.view)
    for block, values in last_state(view).vectors.items():
        np.testing.assert_allclose(values, ours[block], atol=2e-5, err_msg=block)
    for mine, theirs in zip(view.rounds, simulated.view.rounds, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert mine.accuracy == theirs.accuracy
        assert mine.train_loss is None or mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
    assert (home.path / "runs").is_dir(), "what left this device is on its record"
