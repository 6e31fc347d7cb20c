"""fedpeft on Flower 1.41: the only module that imports ``flwr``.

A fedpeft message is one uint8 ``Array`` in one ``ArrayRecord``, so that Flower chunks large payloads;
its bytes are the wire codec's (``fedpeft.wire``), never an array format of Flower's. Three things live
here: the ``ClientApp`` around a device's handler, the ``Transport`` over any ``Grid``, and ``LocalGrid``,
a ``Grid`` that runs virtual devices in this process and serialises every message as the network would.

Facts of Flower that this relies on are held by tests/test_flower.py.
"""

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.clock import Clock, SystemClock
from fedpeft.errors import FedpeftError, SpecMismatch
from fedpeft.ids import NodeId
from fedpeft.round.transport import Reply, Stage

__all__ = ["GridTransport", "LocalGrid", "NodeContext", "client_app", "run_local", "run_ray"]

RECORD = "fedpeft"
STYPE = "fedpeft.wire"

NODES_DEADLINE_S = 120.0
"""How long Flower's engine may take to register its virtual nodes."""

Handler = Callable[["NodeContext", Stage, bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """What Flower tells a device about itself.

    Args:
        node: Flower's node id; never an identity.
        partition: which simulated client this node plays, from 0; None on a real device.
    """

    node: NodeId
    partition: int | None


def to_record(payload: bytes) -> RecordDict:
    """A payload as message content."""
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return RecordDict({RECORD: ArrayRecord({RECORD: array})})


def from_record(content: RecordDict) -> bytes:
    """The payload of a message's content.

    Raises:
        SpecMismatch: the content is not exactly one payload array.
    """
    record = content.get(RECORD)
    if len(content) != 1 or not isinstance(record, ArrayRecord) or list(record) != [RECORD]:
        raise SpecMismatch(f"Expected one record {RECORD!r} with one array, found {sorted(content)}.")
    array = record[RECORD]
    if array.stype != STYPE or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise SpecMismatch(f"Expected an array of {STYPE} bytes, found {array.stype!r} {array.dtype} {array.shape}.")
    return bytes(array.data)


def client_app(handler: Handler) -> ClientApp:
    """The device's ClientApp: every stage of the protocol goes to ``handler``.

    An exception of the handler becomes an error reply with its text when it is a ``FedpeftError``, with
    its class alone otherwise: the text of an unforeseen error may quote the device's data.
    """
    app = ClientApp()

    def respond(message: Message, context: Context) -> Message:
        partition = context.node_config.get("partition-id")
        node = NodeContext(node=NodeId(context.node_id), partition=None if partition is None else int(str(partition)))
        try:
            payload = handler(node, Stage(message.metadata.message_type), from_record(message.content))
        except FedpeftError as error:
            return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(error)), reply_to=message)
        except Exception as error:
            logging.getLogger(__name__).exception("the device's handler failed")
            reason = f"{type(error).__name__} on the device; its log has the details"
            return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)
        return Message(to_record(payload), reply_to=message)

    for stage in Stage:
        category, action = stage.value.split(".")
        getattr(app, category)(action)(respond)
    return app


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
        while waiting and self._clock.monotonic_s() - started < deadline_s:
            replies = list(self._grid.pull_messages(list(waiting)))
            for message in replies:
                node = waiting.pop(message.metadata.reply_to_message_id)
                yield self._reply(message, node, len(requests[node]), self._clock.monotonic_s() - started)
            wait_s = 0.001 if replies else min(2 * wait_s, self._poll_s)
            if waiting and not replies:
                pause.wait(wait_s)

    def _reply(self, message: Message, node: NodeId, bytes_down: int, seconds: float) -> Reply:
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
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="device")
        self._running: dict[str, Future[Message]] = {}
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
            self._running[message_id] = self._pool.submit(self._deliver, _over_the_wire(message))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready; part of ``Grid``."""
        ready = [message_id for message_id in message_ids if self._running[message_id].done()]
        return [self._running.pop(message_id).result() for message_id in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push all and wait for all; part of ``Grid``, not used by the round engine."""
        futures = [self._running.pop(message_id) for message_id in self.push_messages(messages)]
        return [future.result(timeout) for future in futures]

    def close(self) -> None:
        """Stop taking work; running devices finish."""
        self._pool.shutdown(wait=False, cancel_futures=True)

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


def run_local(app: ClientApp, main: Callable[[GridTransport], None], *, devices: int, workers: int) -> None:
    """Run a coordinator against virtual devices in this process, through a ServerApp on a LocalGrid."""
    grid = LocalGrid(app, devices=devices, workers=workers)
    try:
        context = Context(run_id=1, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config={})
        _server_app(main)(grid, context)
    finally:
        grid.close()


def run_ray(app: ClientApp, main: Callable[[GridTransport], None], *, devices: int, workers: int) -> None:
    """Run a coordinator against virtual devices on Ray, through Flower's own simulation engine.

    ``app`` travels to Ray's actors, so its handler must be built from picklable parts only (Ray's doing).
    """
    from flwr.simulation import run_simulation

    backend: dict[str, Any] = {
        "init_args": {"num_cpus": workers, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }

    def start(transport: GridTransport) -> None:
        clock, pause = SystemClock(), threading.Event()
        end = clock.monotonic_s() + NODES_DEADLINE_S
        while len(transport.nodes()) < devices and clock.monotonic_s() < end:
            pause.wait(0.1)  # Ray registers the nodes while the coordinator starts
        main(transport)

    run_simulation(_server_app(start), app, num_supernodes=devices, backend_name="ray", backend_config=backend)


def _server_app(main: Callable[[GridTransport], None]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        main(GridTransport(grid, SystemClock()))

    return app


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
