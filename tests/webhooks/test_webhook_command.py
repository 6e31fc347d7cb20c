"""`fedpeft coordinator webhook`, and a coordinator that tells what happens."""

import json
import re
import time
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft_server.webhooks.hooks import Webhooks
from tests.webhooks.address import Address


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert main(["coordinator", "init", "--home", str(tmp_path / "fed"), "--host", "localhost"]) == 0
    return tmp_path / "fed"


def test_a_secret_is_shown_once_and_stands_in_no_log(
    home: Path, address: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coordinator", "webhook", "add", "ops", address.url, "--event", "run-ended", "--home", str(home)]) == 0
    said = capsys.readouterr()
    secret = re.search(r"whsec_\S+", said.out)
    assert secret is not None
    assert main(["coordinator", "webhook", "ls", "--home", str(home)]) == 0
    assert main(["coordinator", "webhook", "ls", "--json", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    assert "run-ended" in shown
    assert secret[0] not in shown
    assert secret[0] not in (home / "audit.jsonl").read_text()
    assert main(["coordinator", "webhook", "test", "ops", "--home", str(home)]) == 0
    assert address.types() == ["test"]
    assert main(["coordinator", "webhook", "rm", "ops", "--home", str(home)]) == 0
    assert main(["coordinator", "webhook", "test", "ops", "--home", str(home)]) == 3
    events = [json.loads(line)["event"] for line in (home / "audit.jsonl").read_text().splitlines()]
    assert events[-2:] == ["webhook-added", "webhook-removed"]


def test_what_is_wrong_is_said_and_nothing_is_kept(
    home: Path, address: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["coordinator", "webhook", "add", "ops"]
    assert main([*add, "http://hooks.example/", "--home", str(home)]) == 3
    assert main([*add, address.url, "--event", "run-eaten", "--home", str(home)]) == 2
    assert "run-ended" in capsys.readouterr().err, "the events that there are"
    assert Webhooks(home / "webhooks").all() == ()
    address.answers = [503]
    assert main([*add, address.url, "--home", str(home)]) == 0
    assert main(["coordinator", "webhook", "test", "ops", "--home", str(home)]) == 8
    assert "it answered 503" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_running_coordinator_tells_of_a_run_from_its_start_to_its_end(tmp_path: Path, address: Address) -> None:
    from federation import running

    with running(tmp_path, ("ward-a", "ward-b", "ward-c", "ward-d")) as federation:
        where = str(federation.home.path)
        assert main(["coordinator", "webhook", "add", "ops", address.url, "--home", where]) == 0
        federation.finished(federation.submit(rounds=1))
        end = time.monotonic() + 30
        while "run-ended" not in address.types() and time.monotonic() < end:
            time.sleep(0.05)
    assert address.types() == ["run-started", "run-ended"]
