"""`fedpeft local up`: processes, TLS and the real protocol, and the simulation's adapter to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import fedpeft
from fedpeft.cli import main
from fedpeft_server.run.run_view import read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(600)]

LISTENING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{LISTENING}; from fedpeft.cli import main; sys.exit(main())", "local", "up"]
RUN = """
[base]
model = "{base}"
[task]
kind = "classify"
max_length = 16
[data]
source = "birds.jsonl"
partition = {{ by = "iid", clients = 3 }}
[train]
local_steps = 1
batch_size = 8
[rounds]
count = 2
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fedpeft.testing.models import save_tiny, tiny_bert

    folder = tmp_path_factory.mktemp("local")
    save_tiny(tiny_bert(layers=1, classes=2), folder / "base")
    rows = [{"text": f"the {'red' if i % 2 else 'blue'} bird {i}", "label": "ab"[i % 2]} for i in range(60)]
    (folder / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.toml").write_text(RUN.format(base=folder / "base"))
    return folder


@pytest.fixture(scope="module")
def simulated(scenario: Path) -> fedpeft.Result:
    return fedpeft.simulate(
        scenario / "run.toml", scenario / "birds.jsonl", out=scenario / "simulated", store=scenario / "store"
    )


def started(scenario: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    line = [*COMMAND, *map(str, arguments), "--store", str(scenario / "store")]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, cwd=scenario, env={**os.environ, "PYTHONPATH": path}, stdout=pipe, stderr=pipe, text=True
    )


def processes_of(folder: Path) -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())]


def trained(run: Path) -> list[object]:
    rows = [(row.loss, row.train_loss, row.checkpoint["global.safetensors"]) for row in read_run(run).rounds]
    return [rows, (run / "adapters" / "final" / "adapter_model.safetensors").read_bytes()]


def test_a_local_federation_of_processes_trains_the_simulations_adapter(
    scenario: Path, simulated: fedpeft.Result, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command in this process, which has torch already; what it starts are processes of their own."""
    monkeypatch.chdir(scenario)
    capfd.readouterr()
    code = main(["local", "up", "run.toml", "--out", "runs", "--json", "--store", str(scenario / "store")])
    out, err = capfd.readouterr()
    assert code == 0, err
    answer = json.loads(out)
    run = scenario / answer["run"]
    assert trained(run) == trained(simulated.path)
    assert verify_run(run) == ()
    assert "a coordinator and 3 devices are up and have the run after" in err
    assert processes_of(scenario / answer["folder"]) == []


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_the_run_goes_on_from_its_folder(
    scenario: Path, simulated: fedpeft.Result
) -> None:
    process = started(scenario, "run.toml", "--out", "interrupted", "--set", "rounds.count=2")
    while not list((scenario / "interrupted").glob("*/coordinator/runs/*/checkpoints/r0001")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    (folder,) = (scenario / "interrupted").iterdir()
    assert processes_of(folder) == []
    resumed = started(scenario, "--resume", folder, "--json")
    out, err = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, err
    assert trained(scenario / json.loads(out)["run"]) == trained(simulated.path)
