"""Which devices a run does without, since when, and the reason that each gave: for the run's operator.

A reason is one of the few that a device may give, or that it did not answer; the cause stays with the device's owner
(`fedpeft client status`), because it may follow from the data (docs/adr/0012-silence-and-size-classes.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.round.events import EventKind
from fedpeft_server.run.records import EventRecord, RoundMetrics

__all__ = ["FailingDevice", "failing_devices"]

_FAILED = f"round.{EventKind.FAILED.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingDevice:
    """One device that has failed since it was last in a sum.

    Args:
        client: its name.
        reason: of the last failure.
        since: when the first one was, UTC, ISO 8601.
        round_id: in which round.
        times: how many there were.
    """

    client: str
    reason: str
    since: str
    round_id: int
    times: int


def failing_devices(rounds: Sequence[RoundMetrics], events: Sequence[EventRecord]) -> tuple[FailingDevice, ...]:
    """The devices whose failures no sum has followed, those that failed longest first.

    Args:
        rounds: committed, ascending.
        events: in their order.
    """
    last_sum = {client.client: row.round for row in rounds for client in row.clients if client.state == "summed"}
    failures: dict[str, list[EventRecord]] = {}
    for event in events:
        if event.kind == _FAILED and (event.round or 0) > last_sum.get(event.client, 0):
            failures.setdefault(event.client, []).append(event)
    found = [
        FailingDevice(
            client=client,
            reason=str(own[-1].detail.get("detail", "")) or "no reason given",
            since=own[0].at,
            round_id=own[0].round or 0,
            times=len(own),
        )
        for client, own in failures.items()
    ]
    return tuple(sorted(found, key=lambda one: (one.since, one.client)))
