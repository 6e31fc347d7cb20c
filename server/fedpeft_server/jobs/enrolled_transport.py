"""A deployment's devices as one run sees them: enrolled ones, as they were enrolled, when it is this run's turn."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from fedpeft.clock import Clock
from fedpeft.ids import NodeId
from fedpeft.round.messages import Profile
from fedpeft.round.transport import Reply, Stage, Transport
from fedpeft.wire import WireError, decode
from fedpeft_server.enrolment.active_devices import ActiveDevices
from fedpeft_server.jobs.device_turns import DeviceTurns

__all__ = ["SETTLE_S", "EnrolledTransport", "gather"]

LOOK_S = 0.2
SETTLE_S = 5.0
"""A device that outlived a restart of the coordinator is back within: its longest pause between two attempts is 2 s."""


class EnrolledTransport:
    """``Transport`` that believes the registry rather than a device about who it is.

    Between ``take`` and ``give_back`` it reaches the devices that it took; else none.

    Args:
        inner: the way to Flower's nodes.
        members: who is behind a node.
        turns: with the runs that share these devices; the run has entered.
        number: of the run.
        group: the devices of this group alone; empty: all.
        without: names of devices that it never asks.
        interrupted: raises to end the run from inside a wait.
    """

    def __init__(
        self,
        inner: Transport,
        members: ActiveDevices,
        turns: DeviceTurns,
        *,
        number: int,
        group: str,
        without: Collection[str] = (),
        interrupted: Callable[[], None],
    ) -> None:
        self._inner, self._members, self._interrupted = inner, members, interrupted
        self._turns, self._number, self._group, self._without = turns, number, group, without
        self._invited = False

    def take(
        self,
        needed: Callable[[int], int],
        *,
        priority: Callable[[], int],
        interrupted: Callable[[], None],
        waits: Callable[[Sequence[int]], None],
    ) -> None:
        """Returns when it is this run's turn, with devices; see ``DeviceTurns.take``."""
        self._invited = False
        self._turns.take(self._number, self._reachable, needed, priority=priority, interrupted=interrupted, waits=waits)

    def give_back(self) -> None:
        """Leaves the devices to other runs."""
        self._turns.give_back(self._number)

    def present(self) -> Sequence[str]:
        """Names of the run's devices that can be reached now, whoever has them."""
        devices = (self._members.device(node) for node in self._reachable())
        return sorted(device.name for device in devices if device is not None)

    @property
    def enrolled(self) -> int:
        """How many devices the run has, reachable or not."""
        return len(self._members.nodes(self._group, self._without))

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        self._interrupted()
        return sorted(self._reachable() & self._turns.held(self._number))

    def elsewhere(self) -> int:
        """See ``Transport``."""
        return len(self._reachable() - self._turns.held(self._number))

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``; what a device sends after it was revoked is not passed on."""
        if stage is not Stage.PROFILE and not self._invited:  # whom the round did not invite, another may
            self._invited = True
            self._turns.keep(self._number, requests.keys())
        for reply in self._inner.exchange(stage, requests, deadline_s=deadline_s):
            objection = self._objection(stage, reply)
            yield replace(reply, payload=None, error=objection) if objection else reply

    def _reachable(self) -> Set[NodeId]:
        return set(self._inner.nodes()) & self._members.nodes(self._group, self._without)

    def _objection(self, stage: Stage, reply: Reply) -> str:
        device = self._members.device(reply.node)
        if device is None:
            return "revoked"
        if stage is not Stage.PROFILE or reply.payload is None:
            return ""
        try:
            said = decode(reply.payload, Profile)
        except WireError:
            return ""  # the engine says what is wrong with it
        if (said.device, said.organisation, said.identity) != (device.name, device.organisation, device.identity):
            return f"Expected the profile of {device.name} as enrolled, found another's."
        return ""


def gather(
    transport: EnrolledTransport,
    *,
    needed: int,
    deadline_s: float,
    settled_s: float,
    clock: Clock,
    interrupted: Callable[[], None],
    tell: Callable[[str], None],
) -> None:
    """Returns once ``needed`` devices can be reached, or after ``deadline_s``; says whom it waits for.

    Those who are enrolled beyond that are waited for until ``settled_s``, so that a restart costs nobody a round, and a
    device that is away for good costs none of the others one.

    Args:
        settled_s: on ``clock``: ``SETTLE_S`` after the run began or went on.
        interrupted: raises to end the wait; asked at each look.
        tell: told whenever who is there has changed.
    """
    end = clock.monotonic_s() + deadline_s
    pause, told = threading.Event(), None
    while True:
        interrupted()
        present = transport.present()
        now_s = clock.monotonic_s()
        settled = len(present) == transport.enrolled or now_s >= settled_s
        if (len(present) >= needed and settled) or now_s >= end:
            return
        if present != told:
            told = present
            here = ", ".join(present[:10]) or "none"
            left_s = (end if len(present) < needed else min(end, settled_s)) - now_s
            tell(f"{len(present)} of {needed} devices are here ({here}); waiting {left_s:.0f} s at most")
        pause.wait(LOOK_S)
