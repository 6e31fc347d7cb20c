"""How long ended runs stay: the old ones go whole, what runs or waits stays, and a crash in between is finished."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.errors import ConfigInvalid
from fedpeft.testing.clock import FakeClock
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.home import SCHEMA, CoordinatorHome
from fedpeft_server.jobs import retention
from fedpeft_server.jobs.job_queue import JobQueue, JobState
from fedpeft_server.jobs.retention import old_runs, remove_old_runs
from tests.server.test_job_queue import RUN

DAY = 86_400


class Site:
    """A home with a run in every state, that ended so many days ago."""

    def __init__(self, path: Path) -> None:
        assert main(["coordinator", "init", "--home", str(path), "--host", "localhost"]) == 0
        self.home, self.clock = CoordinatorHome(path), FakeClock()
        self.queue, self.audit = JobQueue(path / "queue"), AuditLog(path / "audit.jsonl", self.clock)
        self.home.runs.mkdir(exist_ok=True)

    def add(self, state: JobState, days: float, run: str) -> None:
        job = self.queue.submit(RUN, source="a")
        folder = self.home.runs / run
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "state").write_bytes(bytes(5000))
        at = self.clock.utc().timestamp() - days * DAY
        for one in (folder / "checkpoints" / "state", folder / "checkpoints", folder):
            os.utime(one, (at, at))
        self.queue.put(replace(job, state=state, run=run))

    def remove(self, days: float = 90) -> list[str]:
        found = remove_old_runs(self.home, self.queue, self.audit, self.clock, older_s=days * DAY, by="operator")
        return [one.job.run for one in found]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path / "fed")
    for state in JobState:
        if state is not JobState.REMOVED:
            made.add(state, 100, f"old-{state.value}")
    made.add(JobState.FINISHED, 10, "young")
    return made


def test_only_what_has_ended_long_ago_goes_and_it_goes_whole(site: Site) -> None:
    gone = ["old-finished", "old-failed", "old-stopped"]
    shown = old_runs(site.home, site.queue, older_s=90 * DAY, now=site.clock.utc().timestamp())
    assert [(one.job.run, one.size_bytes > 5000) for one in shown] == [(name, True) for name in gone]
    assert len(list(site.home.runs.iterdir())) == 6, "a look removes nothing"
    assert site.remove() == gone
    assert sorted(path.name for path in site.home.runs.iterdir()) == ["old-queued", "old-running", "young"]
    assert list((site.home.path / "removed").iterdir()) == []
    removed = [job for job in site.queue.jobs() if job.state is JobState.REMOVED]
    assert [(job.run, "was removed on" in job.reason) for job in removed] == [("", True)] * 3
    with pytest.raises(ConfigInvalid, match="removed"):
        site.queue.resume(removed[2])
    told = [r.detail["run"] for r in site.audit.records() if r.event is AuditEvent.RUN_REMOVED]
    assert told == gone
    assert site.remove() == []


def test_a_file_that_changed_lately_keeps_its_run(site: Site) -> None:
    (site.home.runs / "old-finished" / "checkpoints" / "state").write_bytes(b"new")
    now = (site.home.runs / "old-finished" / "checkpoints" / "state").stat().st_mtime
    names = [one.job.run for one in old_runs(site.home, site.queue, older_s=90 * DAY, now=now)]
    assert "old-finished" not in names


@pytest.mark.parametrize("step", ["removed", "remove_folder"])
def test_a_crash_in_between_is_finished_by_the_next_call(
    site: Site, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JobQueue if step == "removed" else retention, step, killed)
        with pytest.raises(KeyboardInterrupt):
            site.remove()
    assert [path.name for path in (site.home.path / "removed").iterdir()] == ["old-finished"]
    assert site.remove() == ["old-failed", "old-stopped"]
    assert list((site.home.path / "removed").iterdir()) == []
    assert sum(job.state is JobState.REMOVED for job in site.queue.jobs()) == 3


def test_the_command_shows_first_and_removes_then(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    prune = ["coordinator", "prune", "--home", str(site.home.path), "--older-than", "1m"]
    capsys.readouterr()
    assert main([*prune, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["removed"], len(shown["runs"])) == (False, 4)
    assert main(prune) == 0
    assert "4 runs" in capsys.readouterr().out
    assert sorted(path.name for path in site.home.runs.iterdir()) == ["old-queued", "old-running"]
    assert [job.state for job in site.queue.jobs()].count(JobState.REMOVED) == 4
    assert main([*prune[:-1], "soon"]) == 2


def test_beside_a_coordinator_of_before_nothing_is_removed(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """It would not know the record in its audit log, nor the state of the run in its queue."""
    (site.home.path / "schema.json").write_text(json.dumps({"schema": SCHEMA - 1, "fedpeft": "0.1"}))
    assert main(["coordinator", "prune", "--home", str(site.home.path), "--older-than", "1m"]) == 3
    assert "a coordinator of this version" in capsys.readouterr().err
    assert len(list(site.home.runs.iterdir())) == 6
    assert [r.event for r in site.audit.records() if r.event is AuditEvent.RUN_REMOVED] == []
