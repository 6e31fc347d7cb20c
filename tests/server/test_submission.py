"""Submitting a deployment's run.toml: what it need not say, and what is looked at before it is queued."""

import tomllib
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.config.load import parse
from fedpeft.errors import ConfigInvalid, FedpeftError
from fedpeft_server.jobs.submission import submission

RUN = """
[run]
name = "deployed"
[base]
model = "{model}"
[task]
kind = "classify"
labels = ["no", "yes"]
[adapter]
lora = {{ rank = 4 }}
[train]
local_steps = 1
[rounds]
count = 1
min_devices = 5
"""
MADE_UP = '[data]\nsource = "x.jsonl"\npartition = { by = "iid", clients = 4 }\n[[device]]\nclients = ["*"]\n'


def test_a_deployments_run_needs_no_data_and_no_devices() -> None:
    config = parse(RUN.format(model="sha256:" + "0" * 64), source="run.toml")
    assert config.rounds.min_devices == 5


def test_an_invented_partition_caps_no_real_federation() -> None:
    text = RUN.format(model="sha256:" + "0" * 64) + MADE_UP + 'methods = ["lora"]\n'
    assert parse(text, source="run.toml").rounds.min_devices == 5
    with pytest.raises(ConfigInvalid):
        parse(text, source="run.toml", simulation=True)


def test_clients_that_a_simulation_leaves_out_are_not_silently_asked(tmp_path: Path) -> None:
    made_up = MADE_UP.replace("clients = 4", 'clients = 4, without = ["client-1"]') + 'methods = ["lora"]\n'
    with pytest.raises(ConfigInvalid, match="--without NAME"):
        submission(
            RUN.format(model="hub:x/y@" + "0" * 40) + made_up, source=tmp_path / "run.toml", bases=tmp_path / "bases"
        )


def test_a_base_that_is_not_there_is_refused_at_submit(tmp_path: Path) -> None:
    for model in ("sha256:" + "0" * 64, "./no-such-folder", "pypi:no-such-package-of-fedpeft"):
        with pytest.raises(FedpeftError):
            submission(RUN.format(model=model), source=tmp_path / "run.toml", bases=tmp_path / "bases")


def test_a_relative_base_is_meant_from_where_submit_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft_server.jobs.submission.resolve", lambda model: None)
    monkeypatch.chdir(tmp_path)
    text = submission(RUN.format(model="./tiny"), source=tmp_path / "run.toml", bases=tmp_path / "bases")
    assert tomllib.loads(text)["base"]["model"] == str(tmp_path / "tiny")
    assert parse(text, source="run.toml").run.name == "deployed"


def test_the_deployed_template_is_a_run_that_can_be_submitted(capsys: pytest.CaptureFixture) -> None:
    assert main(["config", "template", "--deployed"]) == 0
    text = capsys.readouterr().out
    assert not {"data", "device", "performance"} & set(tomllib.loads(text))
    labelled = text.replace("# labels = []", 'labels = ["no", "yes"]')
    assert parse(labelled, source="run.toml").task.labels == ("no", "yes")
