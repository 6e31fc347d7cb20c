"""What stands between the worker's answer and the network: an owner's refusal holds until the input has left."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.flower import NodeContext
from fedpeft.ids import NodeId
from fedpeft.round.failures import REFUSED
from fedpeft.round.transport import Stage
from fedpeft.secagg import FileLedger
from fedpeft.wire import encode
from fedpeft_client.enrolment.keys import ensure_keys
from fedpeft_client.home import DeviceHome, Enrolment
from fedpeft_client.process.agent import Agent
from fedpeft_client.process.frames import HANDLE
from fedpeft_client.process.in_process import InProcess
from fedpeft_client.site_runs import SiteRuns
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings

NODE = NodeContext(node=NodeId(1), partition=None)


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    """Enrolled with a coordinator that is not up."""
    coordinator = CoordinatorHome(tmp_path / "coordinator")
    initialise(coordinator, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    made = DeviceHome(tmp_path / "device")
    ensure_keys(made, os_entropy)
    made.write_enrolment(
        Enrolment(
            device="ward-a",
            organisation="clinic",
            host="localhost",
            fleet_port=1,
            service_port=2,
            coordinator_key="00" * 32,
            ca_fingerprint="11" * 32,
        )
    )
    made.ca_certificate.write_bytes(coordinator.ca_certificate.read_bytes())
    made.site.write_text('[data]\nsource = "examples.jsonl"\n', encoding="utf-8")
    FileLedger.create(made.ledger, made.identity())
    return made


def agent_of(home: DeviceHome, answer: Callable[[bytes], bytes]) -> Agent:
    return Agent(home, worker=InProcess({HANDLE: answer}))


@pytest.mark.parametrize("during", [False, True], ids=["no refusal", "refused while it is masked"])
def test_an_input_that_was_refused_while_it_was_masked_does_not_leave(home: DeviceHome, during: bool) -> None:
    runs = SiteRuns(home.runs, SystemClock())
    runs.begin("tweets", 1)

    def answer(payload: bytes) -> bytes:
        if during:  # the owner, in another process
            SiteRuns(home.runs, SystemClock()).decide("tweets", "refused", plan="", by="me")
        return b"masked"

    agent = agent_of(home, answer)
    assert agent._handle(NODE, Stage.MASK, b"request") == (encode(REFUSED) if during else b"masked")
    left = runs.record("tweets").left
    assert (0 if left is None else left.rounds) == (0 if during else 1)
