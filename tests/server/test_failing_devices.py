"""Which device fails, since when, and why: over real rounds, and in the words of `fedpeft runs show`."""

import sys
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.round.messages import Failure, FailureReason
from fedpeft.round.transport import Stage
from fedpeft.testing.network import Fault
from fedpeft.wire import encode
from fedpeft_server.run.failing_devices import failing_devices
from fedpeft_server.run.run_view import read_run

sys.path.insert(0, str(Path(__file__).parent))
from world import NODES, World

SECOND = NODES[1]


def test_a_device_that_fails_from_a_round_on_is_named_with_that_rounds_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-reply", stage=Stage.FIT, node=SECOND, after=1, times=None)])
    world.train()
    assert world.path is not None
    view = read_run(world.path)
    (one,) = failing_devices(view.rounds, view.events)
    failed = [event for event in view.events if event.kind == "round.failed" and event.client == "b"]
    assert (one.client, one.round_id, one.times, one.since) == ("b", 2, len(failed), failed[0].at)
    assert main(["runs", "show", str(world.path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fails")]
    assert "b" in line
    assert failed[0].at in line
    assert "round 2" in line


def test_a_device_that_was_summed_again_is_no_trouble(tmp_path: Path) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-reply", stage=Stage.FIT, node=SECOND, after=1, times=1)])
    world.train()
    assert world.path is not None
    view = read_run(world.path)
    assert any(event.kind == "round.failed" for event in view.events)
    assert failing_devices(view.rounds, view.events) == ()


@pytest.mark.parametrize("reason", [FailureReason.REFUSED, FailureReason.LATER, FailureReason.UNABLE])
def test_the_reason_is_the_one_that_the_device_gave(tmp_path: Path, reason: FailureReason) -> None:
    world = World(tmp_path)
    device = world.fleet.devices[SECOND]
    honest = device.handle
    failing = encode(Failure(reason=reason))
    device.handle = lambda stage, payload: failing if stage is Stage.FIT else honest(stage, payload)  # type: ignore[method-assign]
    world.train()
    assert world.path is not None
    view = read_run(world.path)
    (one,) = failing_devices(view.rounds, view.events)
    assert one.reason == reason.value
    states = {client.state for row in view.rounds for client in row.clients if client.client == "b"}
    assert states == {"dropped"} if reason is FailureReason.UNABLE else {reason.value}
