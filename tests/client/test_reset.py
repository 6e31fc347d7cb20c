"""`fedpeft client reset-ledger`: only for a loss, never beside a running device, and it leaves a barrier."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedpeft.cli.client import command
from fedpeft.directory_lock import DirectoryLock
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, IntegrityFailed, NotEnrolled, ResourceMissing
from fedpeft.secagg import FileLedger
from fedpeft.secagg.ledger import HighWaterMark, _name
from fedpeft_client.enrolment.keys import ensure_keys
from fedpeft_client.home import DeviceHome, Enrolment
from fedpeft_client.process.agent import Agent
from fedpeft_client.process.reset import reset_ledger

ENROLMENT = Enrolment(
    device="ward-a",
    organisation="clinic",
    host="::1",
    fleet_port=1,
    service_port=2,
    coordinator_key="00" * 32,
    ca_fingerprint="11" * 32,
)
SITE = '[data]\nsource = "examples.jsonl"\n'


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    """A device whose ledger is gone."""
    made = DeviceHome(tmp_path)
    ensure_keys(made, os_entropy)
    made.write_enrolment(ENROLMENT)
    made.site.write_text(SITE, encoding="utf-8")
    return made


def test_a_device_without_its_ledger_does_not_start_and_says_what_to_do(home: DeviceHome) -> None:
    with pytest.raises(IntegrityFailed, match="reset-ledger"):
        Agent(home)


def test_a_reset_leaves_a_ledger_with_a_barrier(home: DeviceHome) -> None:
    result = CliRunner().invoke(command, ["reset-ledger", "--home", str(home.path)])
    assert result.exit_code == 0, result.output
    assert "sits out the first round" in result.output
    assert FileLedger(home.ledger, home.identity()).barrier


@pytest.mark.parametrize("damage", [b"", b"too short", bytes(200)])
def test_a_damaged_ledger_is_a_lost_one(home: DeviceHome, damage: bytes) -> None:
    FileLedger.create(home.ledger, home.identity())
    (home.ledger / "marks").write_bytes(damage)
    assert "reset-ledger" in reset_ledger(home)
    assert FileLedger(home.ledger, home.identity()).barrier


@pytest.mark.parametrize("damage", [b"", b"too short", bytes(5000)])
def test_a_run_whose_state_is_damaged_is_a_loss_that_can_be_reset(home: DeviceHome, damage: bytes) -> None:
    """The marks alone were looked at, so the remedy that the message names answered "nothing to reset"."""
    ledger = FileLedger.create(home.ledger, home.identity())
    ledger.sit_out("tweets", HighWaterMark(round_id=3, attempt=1, agreed=False))
    ledger._file(_name("tweets")).write(b"sealed by another")
    if damage != b"":
        (home.ledger / _name("tweets")).write_bytes(damage)
    other = HighWaterMark(round_id=40, attempt=1, agreed=False)
    ledger.sit_out("notes", other)
    assert "reset-ledger" in reset_ledger(home)
    again = FileLedger(home.ledger, home.identity())
    assert again.mark("notes") == other, "what it knows of other runs stays"
    assert again.mark("tweets") == HighWaterMark(round_id=3, attempt=1, agreed=True)
    assert again.load("tweets") is None
    assert not again.barrier
    with pytest.raises(ConfigInvalid, match="in order"):
        reset_ledger(home)


def test_a_damaged_state_of_a_run_that_the_marks_do_not_know_is_a_lost_ledger(home: DeviceHome) -> None:
    FileLedger.create(home.ledger, home.identity())._file(_name("tweets")).write(b"x" * 64)
    path = home.ledger / _name("tweets")
    path.write_bytes(path.read_bytes().replace(b"x", b"y"))
    reset_ledger(home)
    assert FileLedger(home.ledger, home.identity()).barrier


def test_a_ledger_in_order_is_not_reset(home: DeviceHome) -> None:
    """Else a site could be talked into forgetting what it signed."""
    FileLedger.create(home.ledger, home.identity())
    before = (home.ledger / "marks").read_bytes()
    with pytest.raises(ConfigInvalid, match="in order"):
        reset_ledger(home)
    assert (home.ledger / "marks").read_bytes() == before


def test_neither_a_running_device_nor_none_at_all_is_reset(home: DeviceHome) -> None:
    with DirectoryLock(home.path), pytest.raises(ResourceMissing):
        reset_ledger(home)
    home.write_enrolment(replace(ENROLMENT, left="it left"))
    with pytest.raises(NotEnrolled):
        reset_ledger(home)
