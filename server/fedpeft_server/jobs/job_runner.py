"""One submitted run on the coordinator: from its run.toml to its adapter, or back from its last commit.

The rounds are ``fedpeft_server.run.federation``'s, as in the simulation; here are the things that a deployment adds
around them: the queue's bookkeeping, waiting for devices, stopping, the audit log.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Literal

from fedpeft import secagg
from fedpeft.clock import Clock
from fedpeft.config import RunConfig
from fedpeft.config.derived import invited_devices
from fedpeft.config.load import parse
from fedpeft.errors import FedpeftError
from fedpeft.ids import RoundId
from fedpeft.round.events import Event, EventKind
from fedpeft.round.plan import learning_plan
from fedpeft.round.rates import rates_told
from fedpeft.round.transport import Stage, Transport
from fedpeft_server.enrolment.active_devices import ActiveDevices
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.attempts import Attempts
from fedpeft_server.jobs.device_turns import DeviceTurns
from fedpeft_server.jobs.disk_space import DiskFull, expect_room, is_full, room_needed
from fedpeft_server.jobs.enrolled_transport import SETTLE_S, EnrolledTransport, gather
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState
from fedpeft_server.jobs.model_process import ModelProcess, Publisher, RunStart
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.privacy.noise_plan import trainable_parameters
from fedpeft_server.report.page import write_report
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.summary import summary_of
from fedpeft_server.service.prometheus import Meters
from fedpeft_server.track import Tracking

__all__ = ["Interrupted", "JobContext", "JobRunner"]

LOOK_S = 0.2
"""Between two looks whether a run that waits is to end."""
KEEPS_S = 60.0
"""How long a run keeps its devices between two attempts at a round."""


_AUDITED = {
    EventKind.COMMITTED: AuditEvent.ROUND_COMMITTED,
    EventKind.ABORTED: AuditEvent.ROUND_ABORTED,
    EventKind.BURNT: AuditEvent.ROUND_BURNT,
}


class Interrupted(Exception):
    """The run is to end here; everything committed stays.

    Args:
        state: what becomes of the job: ``stopped``, or ``running`` when the coordinator goes down and will go on.
    """

    def __init__(self, state: Literal["stopped", "running"]) -> None:
        super().__init__(state)
        self.state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What a run needs of the coordinator around it.

    Args:
        home: its home.
        queue: the submitted runs.
        members: who is enrolled.
        transport: the way to Flower's nodes.
        clock: of deadlines and records.
        meters: for Prometheus.
        audit: who did what.
        interrupted: raises ``Interrupted`` when this job is to end now.
        stopping: whether the coordinator goes down: no round begins any more.
        tell: what is being waited for, for a person.
        turns: with the devices, among the runs that are worked on.
        model_process: the module of the second process.
    """

    home: CoordinatorHome
    queue: JobQueue
    members: ActiveDevices
    transport: Transport
    clock: Clock
    meters: Meters
    audit: AuditLog
    interrupted: Callable[[Job], None]
    stopping: Callable[[], bool]
    tell: Callable[[str], None]
    turns: DeviceTurns
    model_process: str


class JobRunner:
    """Works on one job."""

    def __init__(self, site: JobContext) -> None:
        self._site = site
        self._asked: tuple[RoundId, Stage | None] | None = None

    def work(self, job: Job) -> Job:
        """Run a job to its end; returns where it stands then.

        Raises:
            DiskFull: there is no room; the job is where its last commit left it, and running.
        """
        site = self._site
        model_process = ModelProcess(site.home.bases, site.model_process)
        try:
            self._train(job, model_process)
            job = replace(site.queue.current(job), state=JobState.FINISHED, reason="")
        except Interrupted as end:
            job = replace(site.queue.current(job), state=JobState(end.state), reason="")
        except DiskFull:
            raise
        except (FedpeftError, OSError) as error:
            if isinstance(error, OSError) and is_full(error):
                expected = f"Expected room for run {job.number} in {site.home.path}, found: {error.strerror}"
                remedy = "make room: every committed round is kept, and the run continues by itself"
                raise DiskFull(f"{expected}; {remedy}.") from error
            job = replace(site.queue.current(job), state=JobState.FAILED, reason=str(error))
        finally:
            model_process.close()
        detail = {"state": job.state.value, "reason": job.reason}
        site.audit.append(AuditEvent.RUN_ENDED, actor="coordinator", subject=job.run or job.name, detail=detail)
        site.queue.end(job)
        site.tell(f"run {job.number} {job.state.value} {job.reason}".rstrip())
        return job

    def _train(self, job: Job, model_process: ModelProcess) -> None:
        site, text = self._site, self._site.queue.text(job)
        config = parse(text, source=f"run {job.number}").model_copy(update={"directory": site.home.runs})
        site.tell(f"run {job.number}: loading the base and making the first state")
        drafted = model_process.draft(config)
        site.interrupted(job)
        run = self._directory(job, config, text, drafted)
        resumed = bool(job.run)
        with run:
            job = site.queue.begun(job, run=run.path.name)
            event = AuditEvent.RUN_RESUMED if resumed else AuditEvent.RUN_STARTED
            site.audit.append(event, actor="coordinator", subject=run.path.name, detail={"base": drafted.base})
            site.turns.enter(job.number, job.priority)
            try:
                self._rounds(job, config, run, drafted, model_process)
            except (FedpeftError, Interrupted) as error:
                stopped = isinstance(error, Interrupted)
                run.write_summary(summary_of(run, "interrupted" if stopped else "failed", str(error)))
                self._report(run)
                raise
            finally:
                site.turns.leave(job.number)
            run.write_summary(summary_of(run, "finished"))
            self._report(run)

    def _directory(self, job: Job, config: RunConfig, text: str, drafted: RunStart) -> RunDirectory:
        if job.run:
            run = RunDirectory.open(config.directory / job.run)
            try:
                run.expect(adapter=drafted.initial.spec, base_digest=drafted.base)
            except BaseException:
                run.close()  # else this process keeps its lock, and no later try could open it
                raise
            return run
        return RunDirectory.create(
            config,
            source=text,
            adapter=drafted.initial.spec,
            base_digest=drafted.base,
            command=["fedpeft", *sys.argv[1:]],
        )

    def _report(self, run: RunDirectory) -> None:
        with suppress(FedpeftError, OSError):
            write_report(run.path)

    def _rounds(
        self, job: Job, config: RunConfig, run: RunDirectory, drafted: RunStart, model_process: ModelProcess
    ) -> None:
        site = self._site
        plan = learning_plan(
            config, run_id=run.manifest.run_id, base=drafted.base, adapter_spec=drafted.initial.spec.digest
        ).model_copy(update={"start": drafted.start})
        rates = rates_told(plan, drafted.initial.spec)
        run.record("learning.rates", detail={"rates": rates})
        site.tell(f"run {job.number}: {rates}")
        transport = EnrolledTransport(
            site.transport,
            site.members,
            site.turns,
            number=job.number,
            group=job.group,
            without=job.without,
            interrupted=lambda: site.interrupted(job),
        )
        needed = max(config.rounds.min_devices, secagg.MIN_COHORT_FLOOR)
        publisher = Publisher(model_process, run)
        settled_s = site.clock.monotonic_s() + SETTLE_S
        attempts = Attempts()

        def wait(round_id: RoundId) -> None:
            whole = run.pending.read() is not None  # it goes on with those that it had, and is soon over

            def interrupted() -> None:
                site.interrupted(job)
                if not whole and site.stopping():
                    raise Interrupted("running")

            interrupted()
            pause_s = attempts.before(round_id)
            if pause_s > KEEPS_S or len(transport.present()) < needed:
                transport.give_back()
            self._back_off(pause_s, f"run {job.number} round {round_id}", interrupted)
            expect_room(run.path, room_needed(run.path))  # now, not when the devices have trained
            deadline_s = config.rounds.gather_deadline_s

            def tell(text: str) -> None:
                site.interrupted(job)
                run.record("round.waiting", round_id=round_id, detail={"detail": text})
                site.tell(f"run {job.number} round {round_id}: {text}")

            gather(
                transport,
                needed=needed,
                deadline_s=deadline_s,
                settled_s=settled_s,
                clock=site.clock,
                interrupted=interrupted,
                tell=tell,
            )
            transport.take(
                lambda there: there if whole else invited_devices(config.rounds, there),
                priority=lambda: site.queue.current(job).priority,
                interrupted=interrupted,
                waits=lambda runs: tell(f"waiting for devices that {_named(runs)} at work on"),
            )

        def observe(event: Event) -> None:
            self._observe(job, attempts.seen(event))
            if event.kind in (EventKind.COMMITTED, EventKind.BURNT):
                transport.give_back()

        with self._private(config, drafted, run) as privacy, Tracking(config, run, site.tell) as tracking:
            federation = Federation(
                config,
                plan,
                run,
                transport,
                identity=site.home.identity(),
                clock=site.clock,
                observe=observe,
                publish=publisher,
                privacy=privacy,
                before_attempt=wait,
                after_round=tracking.then(),
            )
            try:
                federation.train(drafted.initial)
            finally:
                publisher.close()

    def _back_off(self, pause_s: float, where: str, interrupted: Callable[[], None]) -> None:
        """Waits before another attempt: a device that has just failed would most likely fail again at once."""
        if not pause_s:
            return
        self._site.tell(f"{where}: trying again in {pause_s:.0f} s")
        end, pause = self._site.clock.monotonic_s() + pause_s, threading.Event()
        while self._site.clock.monotonic_s() < end:
            interrupted()
            pause.wait(LOOK_S)

    def _private(self, config: RunConfig, drafted: RunStart, run: RunDirectory) -> ClientPrivacy | nullcontext[None]:
        if config.privacy.unit != "client":
            return nullcontext()
        witness = self._site.home.path / "privacy" / f"{run.manifest.run_id}.witness"
        witness.parent.mkdir(mode=0o700, exist_ok=True)
        parameters = trainable_parameters(drafted.initial.spec)
        return ClientPrivacy.open(config, parameters=parameters, run=run.path, witness=witness)

    def _observe(self, job: Job, event: Event) -> None:
        site, meters = self._site, self._site.meters
        where = f"run {job.number} round {event.round_id}"
        meters.count("round_events_total", kind=event.kind.value)
        meters.count("bytes_up_total", event.bytes_up)
        meters.count("bytes_down_total", event.bytes_down)
        match event.kind:
            case EventKind.ASKED if (event.round_id, event.stage) != self._asked:  # a line per stage, not per device
                self._asked = event.round_id, event.stage
                stage = event.stage.value if event.stage else ""
                site.tell(f"{where}: asking {event.device} and the others for {stage}, {event.detail}")
            case EventKind.LACKED:
                site.tell(f"{where}: {event.device} says {event.detail}: it is sent that, and asked again")
            case EventKind.FAILED:
                site.tell(f"{where}: {event.device} failed: {event.detail}")
            case EventKind.COMMITTED | EventKind.ABORTED | EventKind.BURNT:
                meters.gauge("round", event.round_id, run=str(job.number))
                site.tell(f"{where}: {event.kind.value} {event.detail}")
                name = _AUDITED[event.kind]
                detail: dict[str, str | int | float] = {"round": event.round_id, "detail": event.detail}
                site.audit.append(name, actor="coordinator", subject=job.run, detail=detail)
            case _:
                pass


def _named(runs: Sequence[int]) -> str:
    """ "run 3 is", "runs 1, 3 are"; ones that are only ahead hold nothing yet."""
    if not runs:
        return "other runs are"
    return f"run {runs[0]} is" if len(runs) == 1 else f"runs {', '.join(map(str, runs))} are"
