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

__all__ = ["home_of_this_version", "made_home", "opened"]


def made_home(path: Path | None) -> "CoordinatorHome":
    """The home at ``path`` or the default one. Its settings are read, so that a wrong path is refused at once.

    Raises:
        ResourceMissing: no `fedpeft coordinator init` made one there.
    """
    home = coordinator_home(path)
    home.settings()
    return home


def home_of_this_version(path: Path | None, what: str) -> "CoordinatorHome":
    """As ``made_home``; a coordinator of before that is still up would not know what this version writes there.

    Args:
        what: it is asked for; for the message.

    Raises:
        ConfigInvalid: there is such a one.
        IntegrityFailed: the home lost its registry.
    """
    from fedpeft.errors import ConfigInvalid
    from fedpeft.home_schema import schema_of
    from fedpeft_server.enrolment.registry import open_registry
    from fedpeft_server.home import SCHEMA

    where = made_home(path)
    if schema_of(where.path)[0] < SCHEMA:
        raise ConfigInvalid(f"Expected a coordinator of this version for {what}; start it anew first.")
    open_registry(where.registry, where.audit).close()  # an audit log without a registry is a home that lost it
    return where


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
