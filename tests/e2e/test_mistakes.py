"""Every mistake a user makes with `fedpeft simulate` ends with the right exit code, a remedy and no traceback."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fedpeft.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

Try = Callable[..., tuple[int, str]]


@pytest.fixture
def attempt(
    scenario: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Try:
    """Runs a command in the scenario's folder; its exit code and all that it said."""
    monkeypatch.chdir(scenario)
    monkeypatch.setenv("FEDPEFT_HOME", str(home))

    def attempting(*arguments: str | Path) -> tuple[int, str]:
        code = main(["simulate", *map(str, arguments), "--out", str(tmp_path / "runs")])
        out, err = capfd.readouterr()
        return code, out + err

    return attempting


MISTAKES: list[tuple[Sequence[str], int, str]] = [
    ([], 2, "CONFIG file or --resume RUN"),
    (["no-such.toml"], 3, "no-such.toml"),
    (["run.toml", "--set", "train.local_stepz=3"], 3, "local_steps"),
    (["run.toml", "--set", "train.local_steps=many"], 3, "train.local_steps"),
    (["run.toml", "--set", "rounds.count=0"], 3, "rounds.count"),
    (["run.toml", "--engine", "spark"], 2, "spark"),
    (["run.toml", "--data", "no-such.jsonl"], 3, "no-such.jsonl"),
    (["run.toml", "--map", "text=body"], 3, "body"),
    (["run.toml", "--set", "data.partition.column=operator"], 3, "operator"),
    (["run.toml", "--set", 'device=[{clients=["*","american","lufthansa"],methods=["lora"]}]'], 3, "lufthansa"),
    (["run.toml", "--set", 'device=[{clients=["american","jetblue","united"],methods=["lora"]}]'], 3, "virgin-america"),
    (["run.toml", "--set", 'device=[{clients=["*"],methods=["lora"],rank=3}]'], 3, "rank"),
    (["run.toml", "--set", 'device=[{clients=["*"],methods=["ia3"]}]'], 3, "ia3"),
    (["run.toml", "--set", 'task.labels=["bad","good"]'], 3, "negative"),
    (["run.toml", "--set", "data.partition.min_examples=1000"], 3, "min_examples"),
    (["run.toml", "--model", "./no-such-model"], 3, "no-such-model"),
    (["run.toml", "--model", "pypi:no-such-package"], 8, "no-such-package"),
    (["run.toml", "--resume", "."], 2, "either"),
    (["--resume", "."], 3, "manifest.json"),
    (["--resume", ".", "--rounds", "9"], 2, "resumed with the configuration"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "named"), MISTAKES, ids=[" ".join(m[0])[:60] or "nothing" for m in MISTAKES]
)
def test_a_mistake_ends_with_its_code_and_names_what_is_wrong(
    attempt: Try, tmp_path: Path, arguments: Sequence[str], code: int, named: str
) -> None:
    found, text = attempt(*arguments)
    assert "Traceback" not in text, text
    assert (found, named in text) == (code, True), text
    assert not (tmp_path / "runs").exists(), "nothing was started"


def test_every_problem_of_a_config_is_told_at_once(attempt: Try) -> None:
    code, text = attempt("run.toml", "--set", "rounds.count=0", "--set", "train.batchsize=1", "--set", 'run.name="A B"')
    assert code == 3
    assert all(name in text for name in ("rounds.count", "train.batchsize", "run.name"))


def test_data_with_two_clients_is_refused_because_a_sum_of_two_is_no_secret(attempt: Try, scenario: Path) -> None:
    lines = (scenario / "tweets.jsonl").read_text().splitlines()
    two = [line for line in lines if json.loads(line)["airline"] in ("american", "jetblue")]
    (scenario / "two.jsonl").write_text("\n".join(two))
    device = 'device=[{clients=["*"],methods=["lora"]}]'
    code, text = attempt("run.toml", "--data", "two.jsonl", "--set", device)
    assert code == 3, text
    assert re.search(r"3 clients or more", text)
