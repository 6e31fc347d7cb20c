"""A ``Transport`` in memory, and an unreliable one: no Flower, no threads, no waiting.

What goes wrong is a list of ``Fault``; the same list gives the same run. Failures covered: a request or a reply lost,
late, repeated or corrupted, in every exchange, once or always; replies out of order; a device whose handler breaks; a
coordinator that dies between two exchanges. Not covered: two coordinators at once. Known nondeterminism: none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedpeft.errors import FedpeftError
from fedpeft.ids import NodeId
from fedpeft.round.transport import Reply, Stage
from fedpeft.testing.clock import FakeClock

__all__ = ["CoordinatorKilled", "Fault", "FaultyTransport", "Handle", "InMemoryTransport"]

Handle = Callable[[Stage, bytes], bytes]
"""A device: one encoded request to one encoded reply."""

FaultKind = Literal[
    "lose-request",  # the device never hears of it
    "lose-reply",  # the device has worked in vain
    "delay",  # the request arrives after the deadline, when the next exchange begins
    "repeat-request",  # the device hears it twice; the second reply arrives
    "repeat-reply",  # the coordinator hears it twice
    "corrupt-request",
    "corrupt-reply",
    "reverse",  # replies arrive last asked first
    "kill",  # the coordinator dies when this exchange begins
]


class CoordinatorKilled(Exception):
    """Stands for a kill: nothing of ours catches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Args:
        kind: what.
        stage: in which exchange.
        node: whose; None is everybody's.
        after: how many exchanges of this stage pass before.
        times: how often; None is for ever.
        at: which part of the message is corrupted, in [0, 1).
    """

    kind: FaultKind
    stage: Stage
    node: NodeId | None = None
    after: int = 0
    times: int | None = 1
    at: float = 0.5

    def strikes(self, kind: FaultKind, stage: Stage, node: NodeId | None, count: int) -> bool:
        """Whether it happens in the ``count``-th exchange of this stage, from 0."""
        last = self.times is None or count < self.after + self.times
        return (kind, stage) == (self.kind, self.stage) and self.node in (None, node) and count >= self.after and last


class InMemoryTransport:
    """Devices that answer at once, each in a second of the fake clock.

    Args:
        devices: who is there.
        clock: moved by one second a reply, and to the deadline when a device is silent.
    """

    def __init__(self, devices: Mapping[NodeId, Handle], clock: FakeClock) -> None:
        self.devices, self._clock = dict(devices), clock
        self.asked: list[tuple[Stage, tuple[NodeId, ...]]] = []

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        return sorted(self.devices)

    def elsewhere(self) -> int:
        """See ``Transport``."""
        return 0

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``."""
        self.asked.append((stage, tuple(requests)))
        for node, payload in requests.items():
            self._clock.advance(1.0)
            yield self._reply(node, stage, payload, len(payload))

    def _reply(self, node: NodeId, stage: Stage, payload: bytes, bytes_down: int) -> Reply:
        answer: bytes | None = None
        error = ""
        try:
            answer = self.devices[node](stage, payload)
        except FedpeftError as failure:
            error = str(failure)
        bytes_up = len(answer) if answer is not None else 0
        return Reply(node=node, payload=answer, error=error, seconds=1.0, bytes_down=bytes_down, bytes_up=bytes_up)


class FaultyTransport(InMemoryTransport):
    """The same with faults.

    Args:
        devices, clock: see ``InMemoryTransport``.
        faults: what goes wrong; may be changed between two exchanges.
    """

    def __init__(self, devices: Mapping[NodeId, Handle], clock: FakeClock, faults: Sequence[Fault] = ()) -> None:
        super().__init__(devices, clock)
        self.faults = list(faults)
        self._counts = dict.fromkeys(Stage, -1)
        self._late: list[tuple[NodeId, Stage, bytes]] = []

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``; breaks its promise of one reply a node where a fault says so."""
        self._counts[stage] += 1
        if self._struck("kill", stage, None):
            raise CoordinatorKilled(f"before {stage.value}")
        self.asked.append((stage, tuple(requests)))
        late, self._late = self._late, []
        for node, late_stage, payload in late:
            self._reply(node, late_stage, payload, 0)
        order = list(requests)
        replies = [reply for node in order for reply in self._delivered(node, stage, requests[node])]
        if len({reply.node for reply in replies}) < len(order):
            self._clock.advance(deadline_s)
        if self._struck("reverse", stage, None):
            replies.reverse()
        yield from replies

    def _delivered(self, node: NodeId, stage: Stage, payload: bytes) -> list[Reply]:
        self._clock.advance(1.0)
        if self._struck("lose-request", stage, node):
            return []
        if self._struck("delay", stage, node):
            self._late.append((node, stage, payload))
            return []
        sent = self._corrupted("corrupt-request", stage, node, payload)
        reply = self._reply(node, stage, sent, len(payload))
        if self._struck("repeat-request", stage, node):
            reply = self._reply(node, stage, sent, len(payload))
        if self._struck("lose-reply", stage, node):
            return []
        if reply.payload is not None:
            changed = self._corrupted("corrupt-reply", stage, node, reply.payload)
            reply = Reply(
                node=node,
                payload=changed,
                error="",
                seconds=reply.seconds,
                bytes_down=reply.bytes_down,
                bytes_up=len(changed),
            )
        return [reply, reply] if self._struck("repeat-reply", stage, node) else [reply]

    def _corrupted(self, kind: FaultKind, stage: Stage, node: NodeId, payload: bytes) -> bytes:
        changed = bytearray(payload)
        for fault in self.faults:
            if fault.strikes(kind, stage, node, self._counts[stage]):
                changed[int(fault.at * len(changed))] ^= 0x55
        return bytes(changed)

    def _struck(self, kind: FaultKind, stage: Stage, node: NodeId | None) -> bool:
        return any(fault.strikes(kind, stage, node, self._counts[stage]) for fault in self.faults)
