"""`fedpeft client run`: the one long-lived process that stands between the coordinator and this device's model.

It speaks Flower's Fleet protocol, keeps the heartbeat while the model trains, and runs the ClientApp that is installed
here: what arrives is data for ``fedpeft.round.device``, never code. The model, the examples and the secrets are in a
second process (``fedpeft_client.process.worker``); this one stays small and answers for it when it dies.
"""

import logging
import math
import threading
from collections.abc import Callable
from typing import Protocol

from fedpeft.child import Child, ChildDied
from fedpeft.clock import Clock, SystemClock
from fedpeft.directory_lock import DirectoryLock, short_turn
from fedpeft.errors import ApprovalPending, FedpeftError, NotEnrolled, RosterMissing
from fedpeft.flower import NodeContext, client_app
from fedpeft.flower.fleet import Fleet
from fedpeft.flower.fleet_client import FleetTarget
from fedpeft.home_schema import keep_schema
from fedpeft.ids import NodeId
from fedpeft.round.failures import REFUSED, Trouble, cause_of, refusal_of
from fedpeft.round.local import Effort
from fedpeft.round.messages import Failure, FailureReason, FitRequest
from fedpeft.round.signed_request import read_signed
from fedpeft.round.transport import Stage
from fedpeft.secagg import FileLedger
from fedpeft.wire import decode, encode
from fedpeft_client.connection.proxy import proxy_of
from fedpeft_client.home import SCHEMA, DeviceHome
from fedpeft_client.process.frames import HANDLE, framed
from fedpeft_client.process.in_process import InProcess
from fedpeft_client.process.run_watch import RunWatch
from fedpeft_client.process.troubles import TroubleLog
from fedpeft_client.site import Site
from fedpeft_client.site_runs import SiteRuns

__all__ = ["IN_ROUND_S", "Agent", "Services", "WakeSignal"]

IN_ROUND_S = 4 * 3600.0
"""After a request within a round, whose secrets are in the worker's memory: longer than any stage waits for others."""
IDLE_S, FASTEST_S, SLOWEST_S = 20.0, 0.02, 1.0
"""Between two looks for a message: with the wake-up stream, and without it right after a message and later."""

_log = logging.getLogger(__name__)


class Services(Protocol):
    """What the coordinator's gRPC service is to a device that runs: ``fedpeft_client.process.coordinator_services``."""

    def fetch(self, digest: str) -> None:
        """Bring a base artifact into the device's store and keep it there; quick when it is there.

        Raises:
            FedpeftError: it cannot be had, or is not what its digest says.
        """
        ...

    def start(self, ring: Callable[[], None]) -> None:
        """Keep the wake-up stream open, from a thread, until ``close``; ring with every wake-up and connection."""
        ...

    @property
    def is_streaming(self) -> bool:
        """Whether the stream is up: then polling is not needed."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class WakeSignal:
    """What the wake-up stream rings and the Fleet connection listens to.

    Args:
        streaming: whether rings can be relied on now.
    """

    def __init__(self, streaming: Callable[[], bool] = lambda: False) -> None:
        self._rung, self._streaming = threading.Event(), streaming
        self._pause_s = FASTEST_S

    def ring(self) -> None:
        """A message waits, or it is time to look for another reason."""
        self._rung.set()

    def wait(self, answered: bool) -> None:
        """Until the next look for a message."""
        self._pause_s = FASTEST_S if answered else min(2 * self._pause_s, SLOWEST_S)
        self._rung.wait(IDLE_S if self._streaming() else self._pause_s)
        self._rung.clear()


class IdleTimer:
    """When the worker may go: it holds the base, and between two rounds nothing that is not on the disk.

    Args:
        clock: tells the time.
        rest_after_s: after a round's last request, or one outside a round; 0: never.
    """

    def __init__(self, clock: Clock, rest_after_s: float) -> None:
        self._clock, self._rest_after_s = clock, rest_after_s
        self._until_s = math.inf

    def answered(self, stage: Stage) -> None:
        """A request was."""
        pause_s = self._rest_after_s if stage in (Stage.PROFILE, Stage.REVEAL) else IN_ROUND_S
        self._until_s = self._clock.monotonic_s() + pause_s if self._rest_after_s else math.inf

    @property
    def is_over(self) -> bool:
        """Whether it has been idle for long enough."""
        return self._clock.monotonic_s() >= self._until_s


class Agent:
    """One device at work.

    Args:
        home: its home; enrolled.
        services: its connection to the coordinator's gRPC service; None: polling, and bases by hand.
        worker: the module of the second process, another one only to test what is around it; or what answers in
            this process.

    Raises:
        NotEnrolled: it is not enrolled.
        ConfigInvalid: site.toml is missing or wrong.
        ResourceMissing: another process is this device already; names it.
        IntegrityFailed: its ledger is lost or damaged: it takes part in no run.
    """

    def __init__(
        self,
        home: DeviceHome,
        services: Services | None = None,
        *,
        worker: str | InProcess = "fedpeft_client.process.worker",
    ) -> None:
        enrolment = home.enrolment()
        self._site = Site.load(home.site)
        self._coordinator_key = bytes.fromhex(enrolment.coordinator_key)
        home.state.mkdir(mode=0o700, exist_ok=True)
        FileLedger(home.ledger, home.identity())  # now, not when the worker is asked
        self._owner = DirectoryLock(home.path)
        keep_schema(home.path, SCHEMA)
        self._troubles = TroubleLog(home.troubles, SystemClock())
        self._watch = RunWatch(SiteRuns(home.runs, SystemClock()), self._site, SystemClock())
        self._services = services
        self._bell = WakeSignal(lambda: services is not None and services.is_streaming)
        self._stopping = threading.Event()
        self._child = Child(worker, [str(home.path)]) if isinstance(worker, str) else worker
        self._idle = IdleTimer(SystemClock(), self._site.limits.rest_after_s)
        try:
            self._fleet = Fleet(
                lambda: _target(home),
                client_app(self._handle),
                wait=self._wait,
                stopping=self._stopping.is_set,
                refused=self._child.kill,
            )
        except BaseException:
            self._owner.release()  # a process that lives on, such as a notebook, tries again
            raise

    def run(self, connected: Callable[[NodeId], None] = lambda node: None) -> None:
        """Work until ``stop``.

        Raises:
            NotEnrolled: the device was revoked; says when and why.
        """
        try:
            if self._services is not None:
                self._services.start(self._bell.ring)
            self._fleet.serve(connected)
        finally:
            if self._services is not None:
                self._services.close()
            self._child.close()
            self._fleet.close()
            self._owner.release()

    def stop(self) -> None:
        """End soon; what is being trained is given up and trained again when the device is back."""
        self._stopping.set()
        self._fleet.let_go()
        self._bell.ring()
        self._child.kill()

    def _wait(self, answered: bool) -> None:
        if self._idle.is_over and self._child.rest():
            _log.info("the training process rests until it is needed")
        self._bell.wait(answered)

    def _handle(self, node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        """One request: to the worker, and its answer back.

        A worker that dies while it trains is started and asked again: the device remembers that it has tried, and
        tries with care, then without its examples. Memory that their number decides must not be heard of.
        """
        if stage is Stage.FIT:
            try:
                self._prepare(decode(payload, FitRequest))
            except (ApprovalPending, RosterMissing) as error:  # no trouble: the owner was told, or will be asked
                return encode(refusal_of(error))
            except (FedpeftError, OSError) as error:
                return self._refused(stage, error)
        elif self._watch.is_off(stage):
            return encode(REFUSED)
        for _ in Effort:
            try:
                hours = self._site.limits.hours_at_most
                answer = self._child.ask(HANDLE, framed(stage, payload), within_s=3600.0 * hours)
                self._idle.answered(stage)
                if self._watch.is_off(stage):  # refused while this was computed
                    return encode(REFUSED)
                self._watch.leaving(stage, payload, answer)
                return answer
            except OSError as error:  # what cannot be written down does not leave
                return self._refused(stage, error)
            except ChildDied as death:
                why = ", most likely for its memory" if death.out_of_memory else ""
                cause = f"The training process ended in {stage.value}: {death}{why}."
                self._troubles(Trouble(run_id="", round_id=0, cause=cause))
                if stage is not Stage.FIT or death.overdue or self._stopping.is_set():
                    break
        return encode(Failure(reason=FailureReason.PROTOCOL))

    def _refused(self, stage: Stage, error: Exception) -> bytes:
        self._troubles(Trouble(run_id="", round_id=0, cause=f"{stage.value}: {cause_of(error)}"))
        return encode(refusal_of(error))

    def _prepare(self, request: FitRequest) -> None:
        """The base of the plan, fetched once, when the coordinator has signed for it and the site allows it."""
        signed = read_signed(self._coordinator_key, request)
        # The worker checks every rule; these come before a download that may take hours.
        self._site.permit(signed.plan, now=SystemClock().utc().astimezone())
        self._watch.expect_approved(signed)
        if self._services is not None:
            self._services.fetch(signed.plan.base)


def _target(home: DeviceHome) -> FleetTarget:
    """Where the coordinator is, and who this device is to it by what is in its home now."""
    try:
        with short_turn(home.keys):  # not between the two halves of a rotation
            enrolment = home.enrolment()
            return FleetTarget(
                address=enrolment.fleet_url.removeprefix("https://"),
                ca=home.ca_certificate.read_bytes(),
                node_key=home.device_key.read_bytes(),
                proxy=proxy_of(home, enrolment.host),
            )
    except OSError as error:
        raise NotEnrolled(
            f"Expected keys in {home.keys}, found {error.strerror}; join again with a new token."
        ) from error
