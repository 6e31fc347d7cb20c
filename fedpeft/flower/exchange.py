"""The round engine's ``Transport`` to the devices of a deployment, on Flower's state in this process."""

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Message

from fedpeft.clock import Clock
from fedpeft.flower.grid import reply_of
from fedpeft.flower.records import to_record
from fedpeft.flower.superlink import SuperLink
from fedpeft.ids import NodeId
from fedpeft.round.transport import SMALL_ANSWER_BYTES, Reply, Requests, Stage

__all__ = ["FleetTransport"]

LOOK_S = 1.0
"""Between two looks for nodes that are gone; replies are heard of at once."""


class FleetTransport:
    """Implements ``Transport``.

    A device that was killed, or whose response was lost, is handed its request again: it answers a repeat as it did
    before.
    """

    def __init__(self, link: SuperLink, clock: Clock) -> None:
        self._link, self._clock = link, clock

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        return self._link.online()

    def elsewhere(self) -> int:
        """See ``Transport``."""
        return 0

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``."""
        link, clock = self._link, self._clock
        started = looked = clock.monotonic_s()
        sizes: dict[NodeId, int] = {}

        def messages() -> Iterator[Message]:
            for node, payload in requests.items():
                sizes[node] = len(payload)
                yield Message(to_record(payload), dst_node_id=node, message_type=stage.value, ttl=deadline_s + 1.0)

        most = requests.answer_bytes if isinstance(requests, Requests) else SMALL_ANSWER_BYTES
        ids = link.push(messages(), answer_bytes=most)
        asked = {message_id: node for message_id, node in zip(ids, sizes, strict=True) if message_id}
        waiting = dict(asked)
        try:
            for message_id, node in zip(ids, sizes, strict=True):
                if message_id is None:
                    yield self._lost(node, sizes[node], started, "not enrolled any more")
            while waiting and (left_s := started + deadline_s - clock.monotonic_s()) > 0:
                seen = link.arrivals
                for message_id, reply in link.claim(waiting.keys()):
                    node = waiting.pop(message_id)
                    seconds = clock.monotonic_s() - started
                    if reply is None:
                        yield self._lost(node, sizes[node], started, "the reply is no message")
                    elif isinstance(reply, bytes):
                        yield Reply(
                            node=node,
                            payload=reply,
                            error="",
                            seconds=seconds,
                            bytes_down=sizes[node],
                            bytes_up=len(reply),
                        )
                    else:
                        yield reply_of(reply, node, sizes[node], seconds)
                if clock.monotonic_s() - looked >= LOOK_S:
                    looked, here = clock.monotonic_s(), set(link.online())
                    for message_id in [one for one, node in waiting.items() if node not in here]:
                        node = waiting.pop(message_id)
                        yield self._lost(node, sizes[node], started, "not connected any more")
                if waiting:
                    link.wait(seen, min(left_s, LOOK_S))
        finally:
            link.forget(asked.keys())

    def _lost(self, node: NodeId, bytes_down: int, started: float, error: str) -> Reply:
        """The answer of a node that gives none."""
        seconds = self._clock.monotonic_s() - started
        return Reply(node=node, payload=None, error=error, seconds=seconds, bytes_down=bytes_down, bytes_up=0)
