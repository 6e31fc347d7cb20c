"""The round engine's ``Transport`` over a Flower Grid, and a Grid in this process."""

import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, runtime_checkable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.clock import Clock
from fedpeft.errors import SpecMismatch
from fedpeft.flower.local_pool import DevicePool
from fedpeft.flower.records import from_record, to_record
from fedpeft.ids import NodeId
from fedpeft.round.transport import Reply, Stage

__all__ = ["GridTransport", "LocalGrid", "reply_of"]


@runtime_checkable
class TakesTurns(Protocol):
    """A Grid whose devices take turns on this machine."""

    def begun(self, message_ids: Collection[str]) -> Collection[str]:
        """Those of these messages whose device has begun with them."""
        ...

    def give_up(self, message_ids: Collection[str], *, late: bool) -> None:
        """Drop these messages: what has not begun does not begin; ``late``: because their deadline has passed."""
        ...


@dataclass(slots=True)
class _Sent:
    """A message under way.

    Args:
        node: to whom.
        size: of its request, in bytes.
        sent_s: when it was handed to the Grid, by the coordinator's clock.
        begun_s: when its device was first seen at it; None: it waits for its turn.
    """

    node: NodeId
    size: int
    sent_s: float
    begun_s: float | None


class GridTransport:
    """``Transport`` over a Flower Grid: pushes requests, polls for replies.

    Args:
        grid: any Grid: LocalGrid, Flower's in-memory one, or the deployed HTTP one.
        clock: for deadlines.
        at_once: how many requests are with the Grid at a time; None: all. Where virtual devices share a machine, a
            deadline is the device's own: its time in the queue does not count, and requests that wait for it are not
            made yet.
        poll_s: longest pause between two polls; the first ones are shorter.
        interrupted: set from another thread, it ends every exchange with KeyboardInterrupt.
    """

    def __init__(
        self,
        grid: Grid,
        clock: Clock,
        *,
        at_once: int | None = None,
        poll_s: float = 0.05,
        interrupted: threading.Event | None = None,
    ) -> None:
        self._grid, self._clock, self._at_once, self._poll_s = grid, clock, at_once, poll_s
        self._interrupted = interrupted or threading.Event()

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        return sorted(NodeId(node) for node in self._grid.get_node_ids())

    def elsewhere(self) -> int:
        """See ``Transport``."""
        return 0

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``."""
        queue = iter(requests.items())
        sent: dict[str, _Sent] = {}
        wait_s = 0.001
        try:
            while True:
                if self._interrupted.is_set():
                    raise KeyboardInterrupt
                self._send(queue, sent, stage, deadline_s)
                if not sent:
                    return
                replies = list(self._grid.pull_messages(list(sent)))
                for message in replies:
                    one = sent.pop(message.metadata.reply_to_message_id)
                    yield reply_of(message, one.node, one.size, self._clock.monotonic_s() - one.sent_s)
                late = self._late(sent, deadline_s)
                if late:
                    self._give_up(late, sent, late=True)
                wait_s = 0.001 if replies or late else min(2 * wait_s, self._poll_s)
                if sent and not replies and not late:
                    self._interrupted.wait(wait_s)
        finally:  # the caller has enough
            self._give_up(list(sent), sent, late=False)

    def _send(
        self, queue: Iterator[tuple[NodeId, bytes]], sent: dict[str, _Sent], stage: Stage, deadline_s: float
    ) -> None:
        room = None if self._at_once is None else max(0, self._at_once - len(sent))
        some = list(islice(queue, room))
        if not some:
            return
        now_s = self._clock.monotonic_s()
        messages = [
            Message(to_record(payload), dst_node_id=node, message_type=stage.value, ttl=deadline_s + 60.0)
            for node, payload in some
        ]
        begun_s = None if isinstance(self._grid, TakesTurns) else now_s
        for message_id, (node, payload) in zip(self._grid.push_messages(messages), some, strict=True):
            sent[message_id] = _Sent(node, len(payload), now_s, begun_s)

    def _late(self, sent: Mapping[str, _Sent], deadline_s: float) -> list[str]:
        now_s = self._clock.monotonic_s()
        if isinstance(self._grid, TakesTurns):
            for message_id in self._grid.begun([key for key, one in sent.items() if one.begun_s is None]):
                sent[message_id].begun_s = now_s
        return [key for key, one in sent.items() if one.begun_s is not None and now_s - one.begun_s >= deadline_s]

    def _give_up(self, message_ids: Collection[str], sent: dict[str, _Sent], *, late: bool) -> None:
        if message_ids and isinstance(self._grid, TakesTurns):
            self._grid.give_up(message_ids, late=late)
        for message_id in message_ids:
            sent.pop(message_id, None)


def reply_of(message: Message, node: NodeId, bytes_down: int, seconds: float) -> Reply:
    """What a Flower message says as a ``Reply``."""
    payload, error = None, ""
    if message.has_error():
        error = message.error.reason or f"Flower error {message.error.code}"
    else:
        try:
            payload = from_record(message.content)
        except SpecMismatch as mismatch:
            error = str(mismatch)
    bytes_up = len(payload) if payload is not None else 0
    return Reply(node=node, payload=payload, error=error, seconds=seconds, bytes_down=bytes_down, bytes_up=bytes_up)


class LocalGrid(Grid):
    """Virtual devices in this process: the real ClientApp on threads, no Ray, no polling server.

    Every message is deflated to Flower's wire objects and inflated again in both directions, so nothing
    that a network would lose or refuse gets through by reference.

    Args:
        app: the devices' ClientApp.
        devices: how many virtual devices; device i has node id 1000 + i and partition i.
        workers: how many run at once.
    """

    def __init__(self, app: ClientApp, *, devices: int, workers: int) -> None:
        self._app = app
        self._partitions = {NodeId(1000 + index): index for index in range(devices)}
        self._contexts: dict[NodeId, RecordDict] = {node: RecordDict() for node in self._partitions}
        self._pool: DevicePool[Message] = DevicePool(workers, busy=self._refusal)
        self._sent: dict[str, Message] = {}
        self._count = len(self._partitions)
        self._run = Run.create_empty(1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1

    def set_run(self, run: Run) -> None:
        """Part of ``Grid``."""
        self._run = run

    @property
    def run(self) -> Run:
        """Part of ``Grid``."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of ``Grid``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Part of ``Grid``."""
        return list(self._partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start each message's device; part of ``Grid``."""
        ids = []
        for message in messages:
            message_id = _stamp(message)
            self._sent[message_id] = arrived = _over_the_wire(message)
            self._pool.submit(message_id, message.metadata.dst_node_id, partial(self._deliver, arrived))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready; part of ``Grid``."""
        replies = self._pool.ready(message_ids)
        for reply in replies:
            self._sent.pop(reply.metadata.reply_to_message_id, None)
        return replies

    def begun(self, message_ids: Collection[str]) -> Collection[str]:
        """See ``TakesTurns``."""
        return self._pool.begun(message_ids)

    def give_up(self, message_ids: Collection[str], *, late: bool) -> None:
        """See ``TakesTurns``."""
        self._pool.give_up(message_ids, late=late)
        for message_id in message_ids:
            self._sent.pop(message_id, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push all and wait for all; part of ``Grid``, not used by the round engine."""
        waiting = list(self.push_messages(messages))
        ended = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while len(replies) < len(waiting) and (ended is None or time.monotonic() < ended):
            replies += self.pull_messages(waiting)
            time.sleep(0.001)
        return replies

    def close(self) -> None:
        """Stop taking work; running devices finish, but for those past their deadline."""
        self._pool.close()

    def _refusal(self, message_id: str) -> Message:
        reason = "the device is still at work on a request whose deadline has passed"
        error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
        reply = Message(error, reply_to=self._sent[message_id])
        _stamp(reply)
        return reply

    def _deliver(self, message: Message) -> Message:
        node = NodeId(message.metadata.dst_node_id)
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": self._partitions[node], "num-partitions": self._count},
            state=self._contexts[node],
            run_config={},
        )
        reply = self._app(message=message, context=context)
        self._contexts[node] = context.state
        _stamp(reply)
        return reply if reply.has_error() else _over_the_wire(reply)


def _stamp(message: Message) -> str:
    message_id = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def _over_the_wire(message: Message) -> Message:
    """The message as the other side would get it: deflated to Flower's objects, then inflated."""
    message_id = message.metadata.message_id
    object_id = message.object_id
    objects = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(object_id, objects)
    if not isinstance(arrived, Message):
        raise SpecMismatch(f"Expected a Message from the wire, found {type(arrived).__name__}.")
    arrived.metadata.__dict__["_message_id"] = message_id
    return arrived
