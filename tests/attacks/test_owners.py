"""Every state directory has one owner, and whoever runs knows what others do to its home.

Found in a first deployment by strangers: two `client run` on one home both served, and their secure-sum ledger was
written by both; `rotate-key` locked the running device out for ever, with a line of the log every two seconds.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from federation import ToyFederation, running

from fedpeft.directory_lock import DirectoryLock, holder
from fedpeft.errors import ResourceMissing
from fedpeft_client.enrolment.keys import public_key
from fedpeft_client.enrolment.membership import leave, rotate_key
from fedpeft_client.home import DeviceHome
from fedpeft_server.enrolment.registry import Registry

pytestmark = pytest.mark.e2e
NAMES = ("ward-a", "ward-b", "ward-c", "ward-d")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """Four devices that stay through the tests of this module, in their order."""
    with running(tmp_path_factory.mktemp("federation"), NAMES) as made:
        yield made


def home(federation: ToyFederation, name: str) -> DeviceHome:
    return DeviceHome(federation.path / name)


def test_a_second_agent_on_a_home_is_refused_and_told_who_has_it(federation: ToyFederation) -> None:
    first = federation.processes["ward-a"]
    second = federation.start("ward-a-again", "toy_device.py", federation.path / "ward-a")
    assert second.wait(60) == 8
    assert f"process {first.pid}" in federation.log("ward-a-again")
    assert first.poll() is None
    assert holder(federation.path / "ward-a") == str(first.pid)


def test_a_killed_agents_home_is_free(tmp_path) -> None:
    script = "import sys, pathlib, time; from fedpeft.directory_lock import DirectoryLock as L; "
    script += "l = L(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ResourceMissing, match=f"process {other.pid}"):
            DirectoryLock(tmp_path)
        other.kill()
        other.wait()
    DirectoryLock(tmp_path).release()


def test_a_second_worker_on_a_devices_state_does_not_answer(federation: ToyFederation) -> None:
    federation.finished(federation.submit(rounds=1))  # so that the first worker runs
    script = "import sys, pathlib; from fedpeft_client.home import DeviceHome; "
    script += "from fedpeft_client.process.worker import locked; "
    script += "locked(DeviceHome(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(federation.path / "ward-b")]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode != 0
    assert "found process" in found.stderr


def test_a_key_that_is_rotated_under_a_running_device_costs_no_round(federation: ToyFederation) -> None:
    job = federation.submit(rounds=8, least=4)
    federation.until(lambda: len(federation.rows(job)) >= 2, "two rounds")
    where = home(federation, "ward-b")
    before = public_key(where.device_key.read_bytes())
    rotate_key(where)
    assert public_key(where.device_key.read_bytes()) != before
    job = federation.finished(job, within_s=120)
    assert job.state.value == "finished", job.reason
    assert [row["devices_survived"] for row in federation.rows(job)][-1] == 4
    assert federation.processes["ward-b"].poll() is None
    federation.until(lambda: "ward-b" in federation.online(), "the device with its new key")


def test_a_device_that_leaves_while_it_runs_ends_with_exit_code_4(federation: ToyFederation) -> None:
    leave(home(federation, "ward-c"), "moved")
    assert federation.processes["ward-c"].wait(60) == 4
    assert "moved" in federation.log("ward-c")


def test_a_device_whose_key_nobody_knows_any_more_ends_with_the_reason(federation: ToyFederation) -> None:
    registry = Registry(federation.home.registry)
    with registry.change() as db:
        db.execute("DELETE FROM devices WHERE name = 'ward-d'")
    registry.close()
    assert federation.processes["ward-d"].wait(90) == 4
    assert "does not know this device's key" in federation.log("ward-d")
    assert federation.log("ward-d").count("answered 401") < 10
