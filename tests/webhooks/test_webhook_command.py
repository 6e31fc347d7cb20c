"""`fedpeft coordinator webhook`, and a coordinator that tells what happens."""

import json
import re
import time
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.clock import SystemClock
from fedpeft_server.backup.restore import restore
from fedpeft_server.backup.save import back_up
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.home import SCHEMA, CoordinatorHome
from fedpeft_server.webhooks.deliveries import Deliveries
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


def test_only_the_host_of_an_address_stands_in_the_audit_log(home: Path) -> None:
    """The path of a chat room's address is all that one needs to write there; other webhooks are told the record."""
    url = "https://hooks.example/services/T00/B00/XXXXXXXX?token=YYYYYYYY"
    assert main(["coordinator", "webhook", "add", "room", url, "--home", str(home)]) == 0
    log = (home / "audit.jsonl").read_text()
    assert "hooks.example" in log
    assert not any(part in log for part in ("services", "XXXX", "YYYY"))


@pytest.mark.parametrize("command", [["add", "other", "https://a.example/"], ["rm", "ops"]], ids=["add", "rm"])
def test_a_coordinator_of_before_reads_no_record_that_it_does_not_know(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take its own audit log for damaged, and go down."""
    assert main(["coordinator", "webhook", "add", "ops", "https://a.example/", "--home", str(home)]) == 0
    (home / "schema.json").write_text(json.dumps({"schema": SCHEMA - 1, "fedpeft": "0.1"}))
    before = (home / "audit.jsonl").read_bytes()
    assert main(["coordinator", "webhook", *command, "--home", str(home)]) == 3
    assert "start it anew" in capsys.readouterr().err
    assert (home / "audit.jsonl").read_bytes() == before
    assert [hook.name for hook in Webhooks(home / "webhooks").all()] == ["ops"]


def test_a_restored_coordinator_tells_what_happens_from_then_on(home: Path, tmp_path: Path, address: Address) -> None:
    """A coordinator that runs goes on telling while the backup is taken: the log was copied before how far it came."""
    clock = SystemClock()
    assert main(["coordinator", "webhook", "add", "ops", address.url, "--home", str(home)]) == 0
    Webhooks(home / "webhooks").delivered("ops", 40)
    path, _ = back_up(CoordinatorHome(home), tmp_path / "backup.tar", clock=clock)
    restore(path, tmp_path / "anew", clock=clock)
    restored = CoordinatorHome(tmp_path / "anew")
    audit, hooks = AuditLog(restored.audit, clock), Webhooks(restored.webhooks)
    audit.append(AuditEvent.RUN_ENDED, actor="coordinator", subject="run-1")
    deliveries = Deliveries(hooks, audit, clock, lambda _: None)
    deliveries.start()
    end = time.monotonic() + 20
    while not address.heard and time.monotonic() < end:
        time.sleep(0.02)
    deliveries.stop()
    assert address.types() == ["run-ended"]


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
