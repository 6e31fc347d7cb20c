"""The worker's begin: what fails there is mended by the device's owner and asked again, in the same process."""

from pathlib import Path
from typing import Any

import pytest

from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, DataInvalid, IntegrityFailed, ResourceMissing
from fedpeft.secagg import FileLedger
from fedpeft_client.enrolment.keys import ensure_keys
from fedpeft_client.home import DeviceHome, Enrolment
from fedpeft_client.process import worker

SITE = '[data]\nsource = "examples.jsonl"\n[policy]\nmax_epsilon = 3.0\n'


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    """Enrolled, with a budget: its ledger is held by whoever has it open."""
    made = DeviceHome(tmp_path)
    ensure_keys(made, os_entropy)
    made.write_enrolment(
        Enrolment(
            device="ward-a",
            organisation="clinic",
            host="localhost",
            fleet_port=1,
            service_port=2,
            coordinator_key=made.identity().public.hex(),
            ca_fingerprint="11" * 32,
        )
    )
    made.site.write_text(SITE)
    FileLedger.create(made.ledger, made.identity())
    return made


class Failing:
    """A trainer's maker that says no as often as it is told to."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)

    def __call__(self, *_: object) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return object()


def test_whoever_fails_at_the_begin_holds_nothing_and_is_asked_again(home: DeviceHome) -> None:
    trainer = Failing(DataInvalid("no such column"), ValueError("a bug"), MemoryError())
    for kind in (DataInvalid, ValueError, MemoryError):
        with pytest.raises(kind):
            worker.begun([str(home.path)], trainer)
    home.site.write_text(SITE + "max_epsilom = 3.0\n")
    with pytest.raises(ConfigInvalid, match="max_epsilom"):
        worker.begun([str(home.path)], trainer)
    home.site.write_text(SITE)
    ledger = home.ledger.rename(home.path / "aside")
    with pytest.raises(IntegrityFailed):
        worker.begun([str(home.path)], trainer)
    ledger.rename(home.ledger)
    assert set(worker.begun([str(home.path)], trainer)) == {worker.HANDLE}
    with pytest.raises(ResourceMissing, match="writing to it"):
        worker.begun([str(home.path)], trainer)
    worker._held.pop().release()
