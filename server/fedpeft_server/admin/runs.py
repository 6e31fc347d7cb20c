"""Operations on runs: what waits, runs and ran; submitting, stopping, resuming; what was learnt."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpeft.config.load import parse
from fedpeft.errors import ConfigInvalid, FedpeftError, said_by
from fedpeft.files import last_lines
from fedpeft.home_schema import schema_of
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.asked import Asked, Download, NotThere
from fedpeft_server.admin.views import event_view, job_view, round_view
from fedpeft_server.enrolment.audit_log import AuditEvent
from fedpeft_server.enrolment.groups import Groups
from fedpeft_server.home import SCHEMA
from fedpeft_server.jobs.job_queue import Job, JobState
from fedpeft_server.jobs.schedule import expect_schedule, with_another_seed
from fedpeft_server.jobs.submission import submission
from fedpeft_server.run.privacy_statements import privacy_lines
from fedpeft_server.run.records import EventRecord, RoundMetrics, from_json
from fedpeft_server.run.run_view import read_run
from fedpeft_server.service.base_files import open_at

__all__ = [
    "adapter", "adapter_file", "clone", "overview", "prefer", "report", "resume", "run", "runs", "stop", "submit",
]  # fmt: skip

SLOTS = ("final", "best", "latest")
ROUNDS = 2000
"""Shown of one run, the newest."""
MOST_DOTS, MOST_KEYS = 200, 500
"""Of a run.toml from afar: in a line, and of all tables together."""
RECENT = 24
"""Transitions of the running round that are shown."""


def overview(site: Administered, asked: Asked) -> object:
    """The coordinator, its devices, its runs, and the last transitions of those that run."""
    jobs = site.queue.jobs()
    live = site.live()
    running = [job for job in jobs if job.state is JobState.RUNNING and job.run]
    recent = [{**event, "run": job.number} for job in running for event in _recent(site, job)]
    return {
        "up": live is not None,
        "coordinator": live,
        "runs": [job_view(job) for job in jobs],
        "recent": sorted(recent, key=lambda event: str(event["at"]))[-RECENT:],
        "committed": _committed(site, running[0]) if running else 0,
    }


def runs(site: Administered, asked: Asked) -> object:
    """Every submitted run."""
    return [job_view(job) for job in site.queue.jobs()]


def run(site: Administered, asked: Asked) -> object:
    """One run with its committed rounds and what it promises of privacy."""
    job = _job(site, asked)
    rows = _rows(site.home.runs / job.run) if job.run else ()
    return {**job_view(job), "privacy": _privacy(site, job), "rounds": [round_view(row) for row in rows[-ROUNDS:]]}


def submit(site: Administered, asked: Asked) -> object:
    """Check a run.toml and queue it; its base is one of the coordinator's store, by digest."""
    text = asked.text("config")
    _expect_own_store(text)
    return submit_here(
        site,
        text,
        source=site.home.path / "run.toml",
        by=asked.by,
        priority=asked.number("priority", 0),
        group=asked.text("group"),
        without=_names(asked),
        start_at=asked.number("start_at", 0),
        every_s=asked.number("every_s", 0),
    )


def _expect_own_store(text: str) -> None:
    """Refuses a run.toml from afar that names anything on this machine but a base by its digest.

    Raises:
        ConfigInvalid: it does, or is none.
    """
    try:
        _expect_small(text)
        base = parse(text, source="run.toml").base
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise ConfigInvalid(f"Expected TOML, found {said_by(error)}.") from error
    if not base.model.startswith("sha256:") or base.adapters:
        raise ConfigInvalid(
            "Expected base.model as sha256:... of the coordinator's own store and no base.adapters: paths are the "
            "coordinator's machine's, and a run that names some is submitted there. See `fedpeft base ls` on it."
        )


def _expect_small(text: str) -> None:
    """Refuses what takes long to read: the time grows with the square of the number of dots, and of unknown keys.

    Raises:
        ConfigInvalid: more of them than any run.toml has.
    """
    if max(line.count(".") for line in f"{text}\n".split("\n")) > MOST_DOTS:
        raise ConfigInvalid(f"Expected at most {MOST_DOTS} dots in a line of run.toml, found more; break the line.")
    level: list[object] = [tomllib.loads(text)]
    keys = 0
    while level and keys <= MOST_KEYS:
        keys += sum(len(one) for one in level if isinstance(one, dict))
        tables = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for table in tables for inner in table]
    if keys > MOST_KEYS:
        raise ConfigInvalid(f"Expected at most {MOST_KEYS} keys in run.toml, found more.")


def submit_here(
    site: Administered,
    text: str,
    *,
    source: Path,
    by: str,
    priority: int = 0,
    group: str = "",
    without: Sequence[str] = (),
    before: Sequence[str] = (),
    start_at: int = 0,
    every_s: int = 0,
) -> dict[str, object]:
    """As ``submit``, by somebody on the coordinator's machine: the base may be a path.

    Args:
        before: names that another run was submitted without: their devices may have been deleted since.
        start_at, every_s: see ``fedpeft_server.jobs.job_queue.Job``; a run that repeats begins now if no time is given.

    Raises:
        ConfigInvalid, ResourceMissing: as ``submission``; no device is in the group, or one to leave out is not there.
    """
    if group:
        Groups(site.registry).expect(group)
    for name in set(without) - set(before):
        site.registry.device(name)
    expect_schedule(start_at, every_s)
    if (group or priority or without or start_at or every_s) and schema_of(site.home.path)[0] < SCHEMA:
        raise ConfigInvalid(
            "Expected a coordinator of this version for --priority, --group, --without, --at and --every; start it "
            "anew first."
        )
    written = submission(text, source=source, bases=site.home.bases)
    if every_s and not start_at:
        start_at = int(site.clock.utc().timestamp())
    job = site.queue.submit(
        written,
        source=str(source),
        priority=priority,
        group=group,
        without=without,
        start_at=start_at,
        every_s=every_s,
    )
    detail: dict[str, str | int | float] = {"number": job.number, "priority": job.priority, "group": job.group}
    detail |= {name: value for name, value in (("start_at", start_at), ("every_s", every_s)) if value}
    if job.without:
        detail["without"] = ", ".join(job.without)
    site.audit.append(AuditEvent.RUN_SUBMITTED, actor=by, subject=job.name, detail=detail)
    return job_view(job)


def clone(site: Administered, asked: Asked) -> object:
    """Queue the run.toml of a run again, as a new run with the same priority, group and devices left out, or more."""
    job = _job(site, asked)
    text = site.queue.text(job)
    if asked.afar:
        _expect_own_store(text)
    source = site.home.path / f"run {job.number}"
    without = tuple(dict.fromkeys((*job.without, *_names(asked))))
    if set(without) != set(job.without):
        text = with_another_seed(text)
    return submit_here(
        site,
        text,
        source=source,
        by=asked.by,
        priority=job.priority,
        group=job.group,
        without=without,
        before=job.without,
    )


def _names(asked: Asked) -> tuple[str, ...]:
    """The devices to leave out, each once."""
    return tuple(dict.fromkeys(name for name in asked.text("without").split(",") if name))


def prefer(site: Administered, asked: Asked) -> object:
    """Give a run another priority; one that runs has it from its next round on."""
    job = site.queue.prefer(_job(site, asked), asked.number("priority", 0))
    detail: dict[str, str | int | float] = {"number": job.number, "priority": job.priority}
    site.audit.append(AuditEvent.RUN_PREFERRED, actor=asked.by, subject=job.name, detail=detail)
    return job_view(job)


def stop(site: Administered, asked: Asked) -> object:
    """Stop a run after what it is doing; what is committed stays."""
    job = site.queue.stop(_job(site, asked))
    site.audit.append(AuditEvent.RUN_STOP_ASKED, actor=asked.by, subject=job.name, detail={"number": job.number})
    return job_view(job)


def resume(site: Administered, asked: Asked) -> object:
    """Put a stopped or failed run into the queue again; it goes on from its last committed round."""
    job = site.queue.resume(_job(site, asked))
    site.audit.append(AuditEvent.RUN_REQUEUED, actor=asked.by, subject=job.name, detail={"number": job.number})
    return job_view(job)


def adapter(site: Administered, asked: Asked) -> object:
    """The files of a run's adapter: the final one, else the best so far, else the latest."""
    folder, names = _adapter(site, asked)
    return {"slot": folder.name, "files": [{"name": name, "bytes": (folder / name).stat().st_size} for name in names]}


def adapter_file(site: Administered, asked: Asked) -> Download:
    """One file of a run's adapter."""
    folder, names = _adapter(site, asked)
    name = asked.text("file")
    if name not in names:
        raise NotThere(f"Expected one of {', '.join(names)}, found {name!r}.")
    return _fetched(site, asked, folder / name)


def report(site: Administered, asked: Asked) -> Download:
    """A run's report, one file of HTML."""
    job = _job(site, asked)
    path = site.home.runs / job.run / "report.html"
    if not job.run or not path.is_file():
        raise NotThere(f"Expected a run that has ended, found no report of run {job.number} yet.")
    return _fetched(site, asked, path)


def _fetched(site: Administered, asked: Asked, path: Path) -> Download:
    opened = open_at(path, 0)
    if opened is None:
        raise NotThere("Expected a file of the run, found none of that name.")
    run_name = path.relative_to(site.home.runs).parts[0]
    site.audit.append(AuditEvent.RESULT_FETCHED, actor=asked.by, subject=run_name, detail={"file": path.name})
    return Download(name=path.name, open=lambda: opened)


def _job(site: Administered, asked: Asked) -> Job:
    name = asked.text("run")
    for job in site.queue.jobs():
        if name in (str(job.number), job.run):
            return job
    raise NotThere(f"Expected a submitted run, found none called {name!r}; see `fedpeft coordinator status`.")


def _rows(path: Path) -> tuple[RoundMetrics, ...]:
    """The committed rounds of a run; none before the first."""
    lines = last_lines(path / "metrics.jsonl", ROUNDS)
    return tuple(from_json(RoundMetrics, line.decode(), where=f"{path.name}/metrics.jsonl") for line in lines)


def _committed(site: Administered, job: Job) -> int:
    """The number of the last committed round; 0: none."""
    rows = last_lines(site.home.runs / job.run / "metrics.jsonl", 1)
    return from_json(RoundMetrics, rows[0].decode(), where=job.run).round if rows else 0


def _recent(site: Administered, job: Job) -> Sequence[Mapping[str, object]]:
    path = site.home.runs / job.run / "events.jsonl"
    events = [from_json(EventRecord, line.decode(), where=job.run) for line in last_lines(path, 4 * RECENT)]
    return [event_view(event) for event in events if event.kind.startswith("round.")][-RECENT:]


def _adapter(site: Administered, asked: Asked) -> tuple[Path, tuple[str, ...]]:
    """Its folder, and the names of the files in it."""
    job = _job(site, asked)
    for slot in SLOTS if job.run else ():
        folder = site.home.runs / job.run / "adapters" / slot
        names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        if names:
            return folder, tuple(names)
    raise NotThere(f"Expected a run with an adapter, found none of run {job.number} yet.")


def _privacy(site: Administered, job: Job) -> Mapping[str, object]:
    """What the run promises by its run.toml, and what has been spent."""
    try:
        wanted = parse(site.queue.text(job), source=f"run {job.number}").privacy
    except ConfigInvalid:  # of an earlier version
        return {"unit": "unknown", "epsilon": None, "delta": None, "lines": []}
    lines: tuple[str, ...] = ()
    if job.run and wanted.unit != "none":
        try:
            lines = privacy_lines(read_run(site.home.runs / job.run))
        except (FedpeftError, OSError):
            lines = ("what was spent cannot be read; see `fedpeft runs verify` on the coordinator",)
    return {"unit": wanted.unit, "epsilon": wanted.epsilon, "delta": wanted.delta, "lines": list(lines)}
