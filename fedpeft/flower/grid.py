"""The round engine's ``Transport`` over a Flower Grid, and a Grid in this process."""

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
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
class GivesUp(Protocol):
    """A Grid that can be told that nobody waits any more."""

    def give_up(self, message_ids: Iterable[str], *, late: bool) -> None:
        """Drop these messages: what has not begun does not begin; ``late``: because their deadline has passed."""
        ...


class GridTransport:
    """``Transport`` over a Flower Grid: pushes all requests, polls for replies.

    Args:
        grid: any Grid: LocalGrid, Flower's in-memory one, or the deployed HTTP one.
        poll_s: longest pause between two polls; the first ones are shorter.
    """

    def __init__(self, grid: Grid, clock: Clock, *, poll_s: float = 0.05) -> None:
        self._grid, self._clock, self._poll_s = grid, clock, poll_s

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        return sorted(NodeId(node) for node in self._grid.get_node_ids())

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``."""
        started = self._clock.monotonic_s()
        messages = [
            Message(to_record(payload), dst_node_id=node, message_type=stage.value, ttl=deadline_s + 60.0)
            for node, payload in requests.items()
        ]
        waiting = dict(zip(self._grid.push_messages(messages), requests, strict=True))
        pause = threading.Event()
        wait_s = 0.001
        try:
            while waiting and self._clock.monotonic_s() - started < deadline_s:
                replies = list(self._grid.pull_messages(list(waiting)))
                for message in replies:
                    node = waiting.pop(message.metadata.reply_to_message_id)
                    yield reply_of(message, node, len(requests[node]), self._clock.monotonic_s() - started)
                wait_s = 0.001 if replies else min(2 * wait_s, self._poll_s)
                if waiting and not replies:
                    pause.wait(wait_s)
        finally:  # past the deadline, or the caller has enough
            if waiting and isinstance(self._grid, GivesUp):
                self._grid.give_up(waiting, late=self._clock.monotonic_s() - started >= deadline_s)


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

    def give_up(self, message_ids: Iterable[str], *, late: bool) -> None:
        """See ``GivesUp``."""
        known = list(message_ids)
        self._pool.give_up(known, late=late)
        for message_id in known:
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
