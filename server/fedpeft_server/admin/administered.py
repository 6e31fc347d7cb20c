"""What operations work on: a coordinator's home, queue and registry, and what only the running process knows."""

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fedpeft.clock import Clock, SystemClock
from fedpeft_server.admin.access import Access
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.registry import Registry, open_registry
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.job_queue import JobQueue

__all__ = ["Administered", "administered"]

Live = Mapping[str, object]
"""What `/status` says: ``now``, ``stopping``, ``devices``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Administered:
    """One coordinator.

    Args:
        home, registry, admission, audit, queue, clock: its own.
        access: the tokens of the API.
        live: what the running process says of itself; None when none is up.
    """

    home: CoordinatorHome
    registry: Registry
    admission: Admission
    audit: AuditLog
    queue: JobQueue
    access: Access
    clock: Clock
    live: Callable[[], Live | None]


@contextmanager
def administered(home: CoordinatorHome) -> Iterator[Administered]:
    """A home as the command line on its own machine works on it, whether its coordinator is up or not.

    Raises:
        ConfigInvalid: no coordinator was initialised here.
        IntegrityFailed: its registry is damaged.
    """
    settings, clock = home.settings(), SystemClock()
    registry, audit = open_registry(home.registry, home.audit), AuditLog(home.audit, clock)
    try:
        yield Administered(
            home=home,
            registry=registry,
            admission=Admission(home, registry, audit, clock),
            audit=audit,
            queue=JobQueue(home.path / "queue"),
            access=Access(registry, clock),
            clock=clock,
            live=lambda: _said(settings.metrics_port),
        )
    finally:
        registry.close()


def _said(port: int) -> Live | None:
    """What the coordinator on this machine says; None when there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            found: Live = json.load(answer)
            return found
    except (OSError, ValueError):
        return None
