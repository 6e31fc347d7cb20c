"""A coordinator's home with its registry open, for the commands that ask or change who may take part."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.cli.homes import coordinator_home

if TYPE_CHECKING:
    from fedpeft_server.enrolment.admission import Admission
    from fedpeft_server.enrolment.registry import Registry
    from fedpeft_server.home import CoordinatorHome

__all__ = ["made_home", "opened"]


def made_home(path: Path | None) -> "CoordinatorHome":
    """The home at ``path`` or the default one. Its settings are read, so that a wrong path is refused at once.

    Raises:
        ResourceMissing: no `fedpeft coordinator init` made one there.
    """
    home = coordinator_home(path)
    home.settings()
    return home


@contextmanager
def opened(home: Path | None) -> "Iterator[tuple[CoordinatorHome, Registry, Admission]]":
    """The home at ``home`` or the default one, its registry, and the decisions about devices.

    Raises:
        ResourceMissing: there is no coordinator's home.
    """
    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.admission import Admission
    from fedpeft_server.enrolment.audit_log import AuditLog
    from fedpeft_server.enrolment.registry import open_registry

    where, clock = made_home(home), SystemClock()
    registry = open_registry(where.registry, where.audit)
    try:
        yield where, registry, Admission(where, registry, AuditLog(where.audit, clock), clock)
    finally:
        registry.close()
