"""The operations in one table: who may, where it is in the API, what it takes, what it does.

The command line calls an operation by its name, on this machine or, through its path, on another one.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from fedpeft_server.admin import people, runs
from fedpeft_server.admin.access import Role
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.asked import Asked, Field
from fedpeft_server.enrolment.groups import GROUP_NAME
from fedpeft_server.enrolment.labels import LABEL_CHARACTERS
from fedpeft_server.jobs.job_queue import PRIORITIES
from fedpeft_server.jobs.schedule import LATEST, LONGEST_EVERY_S

__all__ = ["CONFIG_CHARACTERS", "OPERATIONS", "Operation", "named"]

CONFIG_CHARACTERS = 64 * 1024
"""Of a run.toml; real ones have some thousand."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Of a variable part of a path, matched against the decoded path: no encoding brings in a slash or dots alone."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One.

    Args:
        name: what the command line and the OpenAPI document call it.
        method, path: in the API; ``{name}`` is a variable part.
        role: the least that may use it from afar; None: on the coordinator's own machine only.
        does: the function; its docstring is the document's text.
        fields: what it takes beside the path: of a GET in the query, of a POST in a JSON body.
        status: of success.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    role: Role | None
    does: Callable[[Administered, Asked], object]
    fields: Mapping[str, Field] = field(default_factory=dict)
    status: int = 200

    @property
    def about(self) -> str:
        """The function's docstring."""
        return (self.does.__doc__ or "").strip()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Names of the variable parts."""
        return tuple(re.findall(r"\{(\w+)\}", self.path))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{(\w+)\}", rf"(?P<\1>{NAME})", self.path))

    def match(self, path: str) -> Mapping[str, str] | None:
        """The variable parts of a path; None if it is another's."""
        found = self._pattern.fullmatch(path)
        return None if found is None else found.groupdict()


V, S, A = Role.VIEWER, Role.SUBMITTER, Role.ADMIN
_REASON = {"reason": Field(about="The device is told.")}
_PRIORITY = Field(
    kind="integer", least=-PRIORITIES, most=PRIORITIES, about="Of the runs that wait, the highest is served first."
)
_WITHOUT = Field(most=4096, about="Names of devices that are never asked, with commas between them.")
_TTL = Field(kind="integer", least=60, most=365 * people.DAY_S, about="Seconds that it is good for.")

OPERATIONS = (
    Operation(name="status", method="GET", path="/v1/status", role=V, does=runs.overview),
    Operation(name="runs.list", method="GET", path="/v1/runs", role=V, does=runs.runs),
    Operation(
        name="runs.submit", method="POST", path="/v1/runs", role=S, does=runs.submit, status=201,
        fields={
            "config": Field(required=True, most=CONFIG_CHARACTERS, about="The run.toml."),
            "priority": _PRIORITY,
            "group": Field(pattern=GROUP_NAME, about="Ask the devices of this group alone."),
            "without": _WITHOUT,
            "start_at": Field(kind="integer", most=LATEST, about="Unix seconds before which it does not begin."),
            "every_s": Field(kind="integer", most=LONGEST_EVERY_S, about="Seconds to the next repetition; 0: none."),
        },
    ),
    Operation(
        name="runs.clone", method="POST", path="/v1/runs/{run}/clone", role=S, does=runs.clone, status=201,
        fields={"without": _WITHOUT},
    ),
    Operation(
        name="runs.prefer", method="POST", path="/v1/runs/{run}/priority", role=S, does=runs.prefer,
        fields={"priority": replace(_PRIORITY, required=True)},
    ),
    Operation(name="runs.show", method="GET", path="/v1/runs/{run}", role=V, does=runs.run),
    Operation(name="runs.stop", method="POST", path="/v1/runs/{run}/stop", role=S, does=runs.stop),
    Operation(name="runs.resume", method="POST", path="/v1/runs/{run}/resume", role=S, does=runs.resume),
    Operation(name="runs.report", method="GET", path="/v1/runs/{run}/report", role=V, does=runs.report),
    Operation(name="runs.adapter", method="GET", path="/v1/runs/{run}/adapter", role=S, does=runs.adapter),
    Operation(name="runs.file", method="GET", path="/v1/runs/{run}/adapter/{file}", role=S, does=runs.adapter_file),
    Operation(name="devices.list", method="GET", path="/v1/devices", role=V, does=people.devices),
    Operation(name="devices.show", method="GET", path="/v1/devices/{device}", role=V, does=people.device),
    Operation(
        name="devices.approve", method="POST", path="/v1/devices/{device}/approve", role=A, does=people.approve,
        fields={"code": Field(required=True, most=32, about="As the device's owner reads it out.")},
    ),
    Operation(
        name="devices.deny", method="POST", path="/v1/devices/{device}/deny", role=A, does=people.deny, fields=_REASON,
    ),
    Operation(
        name="devices.revoke", method="POST", path="/v1/devices/{device}/revoke", role=A, does=people.revoke,
        fields=_REASON,
    ),
    Operation(
        name="devices.rename", method="POST", path="/v1/devices/{device}/rename", role=A, does=people.rename,
        fields={"label": Field(required=True, most=LABEL_CHARACTERS, about="Empty: by its own name again.")},
    ),
    Operation(
        name="devices.group", method="POST", path="/v1/devices/{device}/groups", role=A, does=people.group,
        fields={
            "group": Field(required=True, pattern=GROUP_NAME),
            "member": Field(required=True, kind="boolean", about="False: take it out."),
        },
    ),
    Operation(name="devices.delete", method="POST", path="/v1/devices/{device}/delete", role=A, does=people.delete),
    Operation(name="join-tokens.list", method="GET", path="/v1/join-tokens", role=A, does=people.join_tokens),
    Operation(
        name="join-tokens.create", method="POST", path="/v1/join-tokens", role=A, does=people.create_join_token,
        status=201,
        fields={
            "ttl_s": _TTL,
            "uses": Field(kind="integer", least=1, most=100_000),
            "organisation": Field(most=63, about="Whose devices these are."),
            "auto_approve": Field(kind="boolean", about="Whoever has the token is in."),
        },
    ),
    Operation(
        name="join-tokens.revoke", method="POST", path="/v1/join-tokens/{id}/revoke", role=A,
        does=people.revoke_join_token,
    ),
    Operation(name="access-tokens.list", method="GET", path="/v1/access-tokens", role=A, does=people.access_tokens),
    Operation(
        name="access-tokens.create", method="POST", path="/v1/access-tokens", role=None,
        does=people.create_access_token, status=201,
        fields={
            "name": Field(required=True, most=64),
            "role": Field(choices=tuple(role.word for role in Role)),
            "ttl_s": _TTL,
        },
    ),
    Operation(
        name="access-tokens.revoke", method="POST", path="/v1/access-tokens/{id}/revoke", role=A,
        does=people.revoke_access_token,
    ),
    Operation(
        name="audit", method="GET", path="/v1/audit", role=V, does=people.audit,
        fields={
            "before": Field(kind="integer", most=2**53, about="A sequence number."),
            "most": Field(kind="integer", least=1, most=people.AUDIT_LINES),
        },
    ),
)  # fmt: skip
_BY_NAME = {operation.name: operation for operation in OPERATIONS}


def named(name: str) -> Operation:
    """The operation of that name."""
    return _BY_NAME[name]
