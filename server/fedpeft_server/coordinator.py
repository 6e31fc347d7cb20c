"""`fedpeft coordinator up`: one process with Flower's application, the gateway, the services and the round engine.

Started in an order in which nothing is reachable before it is ready: the home's lock, every port, the state, the
listeners, then the queue. SIGTERM ends it the other way round: the round at work gets ``DRAIN_S`` to finish, and what
is committed is there again after the next `up`.
"""

import json
import logging
import threading
from socket import socket
from typing import Protocol

from starlette.types import Receive, Scope, Send

from fedpeft.clock import SystemClock
from fedpeft.directory_lock import DirectoryLock
from fedpeft.errors import FedpeftError
from fedpeft.flower.exchange import FleetTransport
from fedpeft.flower.superlink import SuperLink, node_of
from fedpeft.ids import NodeId
from fedpeft.round.events import EventKind
from fedpeft_server.admin.access import Access
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.api import AdminApi
from fedpeft_server.enrolment.active_devices import ActiveDevices
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, renew_server_certificate
from fedpeft_server.enrolment.registry import Registry, open_registry
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.device_turns import DeviceTurns
from fedpeft_server.jobs.job_queue import Job, JobQueue
from fedpeft_server.jobs.job_runner import Interrupted, JobContext
from fedpeft_server.jobs.queue_worker import QueueWorker
from fedpeft_server.service.connection_limits import ConnectionTimeouts
from fedpeft_server.service.fleet_gateway import FleetGateway
from fedpeft_server.service.grpc_service import FleetService
from fedpeft_server.service.held_pulls import HeldPulls
from fedpeft_server.service.listener import Listener, take_port
from fedpeft_server.service.prometheus import Meters
from fedpeft_server.service.wakeups import Wakeups
from fedpeft_server.webhooks.deliveries import Deliveries
from fedpeft_server.webhooks.hooks import Webhooks

__all__ = ["DRAIN_S", "Coordinator"]

DRAIN_S = 20.0
"""How long a round may go on after SIGTERM."""
ADMIN_PATIENCE = ConnectionTimeouts(silent=64, handshakes=16, kept=128, kept_of_one=16)
"""Of the administration's port: people and scripts, not devices."""
RENEWAL_LOOK_S = 6 * 3600.0

_log = logging.getLogger(__name__)


class Service(Protocol):
    """A server of this process."""

    def start(self) -> None:
        """Returns once it answers."""
        ...

    def stop(self) -> None:
        """Ends it."""
        ...


class Coordinator:
    """The running coordinator. ``start``, ``work``, ``close``, in this order.

    Args:
        home: initialised.
        model_process: the module of its second process; another one only to test what is around it.

    Raises:
        ConfigInvalid: the home was not initialised.
        ResourceMissing: another coordinator holds the home, or a port is taken; names the holder.
        IntegrityFailed: a database is damaged.
    """

    def __init__(self, home: CoordinatorHome, *, model_process: str = "fedpeft_server.jobs.model_process") -> None:
        self._model_process = model_process
        self._home, self._settings, self._clock = home, home.settings(), SystemClock()
        self._lock = DirectoryLock(home.path)
        home.upgrade()
        self._taken = self._ports()
        self.meters, self.wake = Meters(), Wakeups()
        for kind in EventKind:  # a counter that begins at 1 has not grown, for an alert
            self.meters.count("round_events_total", 0.0, kind=kind.value)
        self.audit = AuditLog(home.audit, self._clock)
        self.registry = self._opened()
        home.runs.mkdir(mode=0o700, exist_ok=True)
        self.queue = JobQueue(home.path / "queue")
        self._link = SuperLink(home.objects, wake=self._ring)
        self._held = HeldPulls(self._link.is_due, missed=self._wake_up)
        self.members = ActiveDevices(self.registry, enrol=self._link.enrol, expel=self._expel, clock=self._clock)
        admission = Admission(home, self.registry, self.audit, self._clock)
        renew_server_certificate(home, Authority.of_home(home, self._clock), clock=self._clock)
        gateway = FleetGateway(
            self._link.handlers,
            self.members.standing,
            clock=self._clock,
            meters=self.meters,
            node_of=node_of,
            held=self._held,
        )
        certificate, key = home.server_certificate, home.server_key
        fleet = Listener(gateway, self._taken.get("fleet"), certificate=certificate, key=key)
        self._public = [fleet]
        self._api: AdminApi | None = None
        if "admin" in self._taken:
            self._api = AdminApi(self._administered(admission), self.meters)
            admin = Listener(self._api, self._taken["admin"], certificate=certificate, key=key, timeouts=ADMIN_PATIENCE)
            self._public.append(admin)
        self._listeners: list[Service] = [
            Listener(self._loopback, self._taken["metrics"]),
            *self._public,
            FleetService(home, self.registry, admission, self.wake, self._clock, gateway=fleet.take),
            Deliveries(Webhooks(home.webhooks), self.audit, self._clock, self._told_outside),
        ]
        self._transport = FleetTransport(self._link, self._clock)
        self._ready, self._stopping, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="server-certificate", daemon=True)
        self._stop_at: float | None = None
        self._worker = self._queue_worker()

    def start(self) -> None:
        """Be reachable."""
        self.members.refresh()
        for listener in self._listeners:
            listener.start()
        self._ready.set()
        self._renewing.start()
        self.audit.append(AuditEvent.COORDINATOR_STARTED, actor="coordinator", subject=str(self._home.path))

    def stop(self) -> None:
        """Begin no round any more; a signal handler may call it."""
        self._stop_at = self._clock.monotonic_s() + DRAIN_S
        self._stopping.set()

    def work(self) -> None:
        """Work through the queue until ``stop``.

        Raises:
            DiskFull: the disk was full when it was told to stop.
        """
        self._worker.work()

    def close(self) -> None:
        """Stop listening and let go of everything."""
        self._ready.clear()
        self._closed.set()
        if self._api is not None:
            self._api.close()
        self._held.close()
        for listener in reversed(self._listeners):
            listener.stop()
        self._link.close()
        try:
            self.audit.append(AuditEvent.COORDINATOR_STOPPED, actor="coordinator", subject=str(self._home.path))
        except OSError as error:
            _log.error("the audit log was not written: %s", error)
        self.registry.close()
        self._lock.release()

    def _told_outside(self, outcome: str) -> None:
        self.meters.count("webhook_messages_total", outcome=outcome)

    def _renew(self) -> None:
        """Keeps the server's certificate good however long this process runs."""
        while not self._closed.wait(RENEWAL_LOOK_S):
            try:
                if renew_server_certificate(self._home, Authority.of_home(self._home, self._clock), clock=self._clock):
                    for listener in self._public:  # the gRPC service looks at every handshake
                        listener.reload()
                    _log.info("the server's certificate was renewed")
            except (FedpeftError, OSError) as error:
                _log.error("the server's certificate was not renewed: %s", error)

    def _queue_worker(self) -> QueueWorker:
        site = JobContext(
            home=self._home,
            queue=self.queue,
            members=self.members,
            transport=self._transport,
            clock=self._clock,
            meters=self.meters,
            audit=self.audit,
            interrupted=self._interrupted,
            stopping=self._stopping.is_set,
            tell=_log.info,
            turns=DeviceTurns(self._clock),
            model_process=self._model_process,
        )
        return QueueWorker(site, at_once=self._settings.runs_at_once, stopping=self._stopping, stop=self.stop)

    def _opened(self) -> Registry:
        try:
            return open_registry(self._home.registry, self._home.audit)
        except BaseException:
            self._lock.release()
            for taken in self._taken.values():
                taken.close()
            raise

    def _ports(self) -> dict[str, socket]:
        """The sockets of the listeners by what they are for; the administration's only if it has a port."""
        settings, taken = self._settings, {}
        try:
            public = settings.public_ports()
            for what in public.keys() - {"fleet"}:
                take_port(settings.bind, public[what], what).close()  # gRPC does not say who has it
            if "fleet" in public:
                taken["fleet"] = take_port(settings.bind, public["fleet"], "gateway")
            taken["metrics"] = take_port("127.0.0.1", settings.metrics_port, "metrics")
            if settings.admin_port:
                taken["admin"] = take_port(settings.admin_bind, settings.admin_port, "administration")
            return taken
        except BaseException:
            for one in taken.values():
                one.close()
            self._lock.release()
            raise

    def _administered(self, admission: Admission) -> Administered:
        return Administered(
            home=self._home,
            registry=self.registry,
            admission=admission,
            audit=self.audit,
            queue=self.queue,
            access=Access(self.registry, self._clock),
            clock=self._clock,
            live=self._live,
        )

    def _expel(self, key: bytes) -> None:
        self._link.expel(key)
        self._held.ring(node_of(key))  # to hear of it

    def _ring(self, node: NodeId) -> None:
        if not self._held.ring(node):
            self._wake_up(node)

    def _wake_up(self, node: NodeId) -> None:
        device = self.members.device(node)
        if device is not None:
            self.wake.notify([device.name])

    def _interrupted(self, job: Job) -> None:
        if self._stop_at is not None and self._clock.monotonic_s() > self._stop_at:
            raise Interrupted("running")
        if self.queue.wants_stop(job):
            raise Interrupted("stopped")

    def _live(self) -> dict[str, object]:
        """What only this process knows, for `fedpeft coordinator status` and for the administration."""
        present = {device.name for device in self.members.present(self._transport)}
        return {
            "now": self._worker.now,
            "stopping": self._stopping.is_set(),
            "devices": [
                {"name": device.name, "status": self.members.status(device), "online": device.name in present}
                for device in self.registry.devices()
            ],
        }

    async def _loopback(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/livez, /readyz, /metrics and /status; for this machine only."""
        if scope["type"] != "http":
            return
        status, kind, text = 200, "text/plain; version=0.0.4", ""
        match scope["path"]:
            case "/livez":
                text = "alive\n"
            case "/readyz":
                ready = self._ready.is_set() and not self._stopping.is_set() and not self._worker.trouble
                status, text = (200, "ready\n") if ready else (503, f"not ready {self._worker.trouble}".rstrip() + "\n")
            case "/metrics":
                self.meters.gauge("devices_online", len(self.members.present(self._transport)))
                text = self.meters.text()
            case "/status":
                kind, text = "application/json", json.dumps(self._live())
            case _:
                status = 404
        body = text.encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
