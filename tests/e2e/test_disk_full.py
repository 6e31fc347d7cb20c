"""The coordinator's disk is full in the middle of a round: row 12 of the fault table.

A real file system without room where this user may mount one, and everywhere a limit of the kernel on the running
coordinator's files. Training is one-hot: what was lost or counted twice shows in the sum.
"""

import resource
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedpeft_server.run.run_view import verify_run

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from federation import ToyFederation, running

pytestmark = pytest.mark.e2e
NAMES = ("ward-a", "ward-b", "ward-c", "ward-d")
SIZE = "6m"


@pytest.fixture(params=["tmpfs", "limit"])
def federation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ToyFederation]:
    """Four devices, and a coordinator whose home may lie on a disk of its own."""
    home = tmp_path / "coordinator"
    home.mkdir(mode=0o700)
    mounted = False
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "fedpeft-test", str(home)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        if not mounted:
            pytest.skip("this user may not mount a file system; the limit on files is tested instead")
    try:
        with running(tmp_path, NAMES) as made:
            yield made
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(home)], check=True)


def fill(federation: ToyFederation) -> Callable[[], None]:
    """Takes all room; what is returned gives it back."""
    if federation.home.path.is_mount():
        ballast = federation.home.path / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return ballast.unlink
    pid = federation.processes["coordinator"].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before) and None


def readiness(federation: ToyFederation) -> str:
    """What /readyz answers when it is not ready; empty when it is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{federation.settings.metrics_port}/readyz", timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def begin_and_fill(federation: ToyFederation) -> tuple[object, Callable[[], None]]:
    """A run that has committed a round and finds the disk full in the second."""
    hold = federation.path / NAMES[0] / "hold"
    job = federation.submit(rounds=3)
    federation.until(lambda: federation.queue.job(str(job.number)).run != "", "the run's begin")
    federation.until(lambda: len(federation.rows(job)) >= 1, "the first commit")
    hold.touch()
    federation.until((federation.path / NAMES[0] / "fitting").exists, "training")
    free = fill(federation)
    hold.unlink()
    federation.until(lambda: "make room" in readiness(federation), "/readyz to say so")
    return job, free


def test_a_run_waits_for_room_and_goes_on_by_itself_without_losing_or_repeating_anything(
    federation: ToyFederation,
) -> None:
    job, free = begin_and_fill(federation)
    assert readiness(federation).startswith("503")
    assert "make room" in str(federation.status()["now"])
    assert federation.queue.job(str(job.number)).state.value == "running"
    committed = len(federation.rows(job))
    run = federation.home.runs / federation.queue.job(str(job.number)).run
    assert verify_run(run) == (), "what was committed is valid"
    assert federation.online() == set(NAMES), "nobody was sent away"
    free()
    federation.until(lambda: readiness(federation) == "", "/readyz to be well again")
    ended = federation.finished(job)
    assert (ended.state.value, ended.reason) == ("finished", "")
    assert [row["round"] for row in federation.rows(job)] == [1, 2, 3, 4]
    assert committed >= 1
    np.testing.assert_allclose(federation.trained(job), np.full(4, 3 / 4), atol=1e-5)
    assert verify_run(run) == ()


@pytest.mark.parametrize("federation", ["tmpfs"], indirect=True)  # under the limit nothing can be said in the log
def test_a_coordinator_told_to_end_while_its_disk_is_full_says_so_and_goes_on_later(federation: ToyFederation) -> None:
    job, free = begin_and_fill(federation)
    federation.processes["coordinator"].send_signal(signal.SIGTERM)
    assert federation.processes["coordinator"].wait(40) == 8
    assert "make room" in federation.log("coordinator")
    free()
    federation.up()
    assert federation.finished(job).state.value == "finished"
    np.testing.assert_allclose(federation.trained(job), np.full(4, 3 / 4), atol=1e-5)
