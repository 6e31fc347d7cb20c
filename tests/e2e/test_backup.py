"""A backup of a federation at work, and what a restored coordinator does not do again; real processes.

Training is one-hot: after n rounds a device's coordinate has moved by n / devices, or somebody was counted twice.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from fedpeft.cli import main
from fedpeft.clock import SystemClock
from fedpeft.errors import IntegrityFailed
from fedpeft_server.backup.restore import restore
from fedpeft_server.backup.save import back_up
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.job_queue import JobQueue
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import verify_run

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from federation import ToyFederation, running

pytestmark = pytest.mark.e2e
CLOCK = SystemClock()


def put_back(federation: ToyFederation, archive: Path) -> None:
    """In the place of the home that is there, with the operator's word that nothing has happened since."""
    os.rename(federation.home.path, federation.path / f"lost-{len(list(federation.path.glob('lost-*')))}")
    place = ("--home", str(federation.home.path))
    assert main(["coordinator", "restore", str(archive), *place, "--nothing-since"]) == 0


def test_a_backup_is_whole_while_rounds_go_on_and_no_restored_home_sums_a_round_twice(tmp_path: Path) -> None:
    with running(tmp_path, ("ward-a", "ward-b", "ward-c")) as federation:
        (tmp_path / "ward-b" / "hold").write_text("2")
        job = federation.submit(rounds=4)
        federation.until(lambda: len(federation.rows(job)) >= 1, "a commit")
        live = [back_up(federation.home, tmp_path / f"live-{n}.tar", clock=CLOCK)[0] for n in range(3)]
        federation.processes["coordinator"].send_signal(signal.SIGTERM)
        assert federation.processes["coordinator"].wait(60) == 0
        last, record = back_up(federation.home, tmp_path / "down.tar", clock=CLOCK)
        assert not record.running
        known = len(federation.rows(job))
        assert known < 5, "the run must not have ended"
        (tmp_path / "ward-b" / "hold").unlink()

        # The machine is lost, and nothing happened since: the run goes on to the end, nobody twice.
        put_back(federation, last)
        federation.up()
        assert federation.finished(job).state.value == "finished"
        np.testing.assert_allclose(federation.trained(job)[:3], np.full(3, 4 / 3), atol=1e-5)
        ended = len(federation.rows(job))

        # The same again, which is a lie now: the devices have been in those rounds, and say no.
        federation.kill("coordinator")
        put_back(federation, last)
        federation.up()
        federation.until(lambda: "ABORTED" in federation.log("coordinator") or _refused(federation, job), "refusals")
        assert len(federation.rows(job)) == known < ended
        federation.kill("coordinator")

    for number, archive in enumerate(live):
        home = CoordinatorHome(tmp_path / f"restored-{number}")
        restore(archive, home.path, clock=CLOCK)
        (run,) = home.runs.iterdir()
        assert verify_run(run) == ()
        (resting,) = JobQueue(home.path / "queue").jobs()
        assert (resting.state.value, "does not go on" in resting.reason) == ("failed", True)
        with pytest.raises(IntegrityFailed, match="restored from a backup"):
            RunDirectory.open(run)


def _refused(federation: ToyFederation, job: object) -> bool:
    events = next(federation.home.runs.glob("*/events.jsonl")).read_text()
    return events.count('"round.failed"') >= 3
