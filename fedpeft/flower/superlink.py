"""The coordinator's half of Flower's Fleet protocol, in this process: its application and state, no listener.

Flower's SuperLink serves Fleet, Control and Runtime on one port, and Control has no authentication: whoever reaches it
registers keys and starts code on nodes. Here the application has no port at all (docs/adr/0004): the gate hands it the
Fleet requests that it lets through, and the round engine works on the state directly, so neither Control nor Runtime
can be reached from anywhere.

Flower's state is its own in-memory one (docs/adr/0007): nothing in it need outlive the process. Who is enrolled is in
the registry, what was committed in the run directory, and messages are asked anew after a restart (docs/adr/0002). A
node's id follows from its key, so devices that stayed up go on with the id that they have.

Two things are added to it: a node that comes back within its heartbeat's patience, or whose coordinator has come back,
is taken back at once (stock: refused until the patience is over), and whoever waits for replies is woken when one has
arrived (stock: 3 s polls).
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
)
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from fedpeft.clock import Clock
from fedpeft.errors import RunFailed
from fedpeft.flower.grid import reply_of
from fedpeft.flower.objects import FleetObjects
from fedpeft.flower.records import to_record
from fedpeft.ids import NodeId
from fedpeft.round.transport import Reply, Stage

__all__ = ["FleetTransport", "SuperLink"]

TASK_HEARTBEAT_S = 20.0
"""Flower ends a run that has not been heard of for 60 s."""


class SuperLink:
    """Flower's application and state. Close it.

    Args:
        objects: a folder for large messages on their way; emptied.
        wake: told of a node that a message waits for.

    Attributes:
        app: Flower's ASGI application, for the gate.
    """

    def __init__(self, objects: Path, *, wake: Callable[[NodeId], None] = lambda node: None) -> None:
        logging.getLogger("flwr").setLevel(logging.WARNING)
        app = create_app(_settings(), SuperLinkLifespan)
        _keep_fleet(app)
        self.app: ASGIApp = app
        self._state = cast("InMemoryLinkState", app.state.linkstate_factory.state())
        self._objects = FleetObjects(objects)
        self._state._object_store = self._objects
        self._wake = wake
        self._arrived = threading.Condition()
        self._arrivals = 0
        self._activations: dict[NodeId, int] = {}
        self._extend()
        self._run_id, self._task_id = self._open_run()
        self._closing = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="flower-run", daemon=True)
        self._beating.start()

    def enrol(self, public_key: bytes, name: str) -> NodeId:
        """The node of a device's public key (NIST EC, PEM), registered on first use.

        Raises:
            RunFailed: the key was expelled before; Flower never takes it again.
        """
        known = self._state.get_node_id_by_public_key(public_key)
        if known is not None:
            return NodeId(known)
        state, node = self._state, _node_of(public_key)
        with state.lock:
            if node in state.nodes:
                raise RunFailed(f"Expected a key that was never expelled, found {name}'s; enrol it with a new one.")
            drawn = state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, HEARTBEAT_DEFAULT_INTERVAL, name=name
            )
            state.nodes[node] = state.nodes.pop(drawn)
            state.nodes[node].node_id = state.node_public_key_to_node_id[public_key] = node
            state.owner_to_node_ids[NOOP_FLWR_AID] ^= {drawn, node}
        return node

    def expel(self, public_key: bytes) -> None:
        """Refuse the device of this key from its next request on; whoever waits for it hears of it."""
        node = self._state.get_node_id_by_public_key(public_key)
        if node is not None:
            self._state.delete_node(NOOP_FLWR_AID, node)
            self._notify()

    def online(self) -> Sequence[NodeId]:
        """The nodes heard of within their heartbeat's patience, ascending."""
        found = self._state.get_node_info(statuses=[NodeStatus.ONLINE])
        return sorted(NodeId(node.node_id) for node in found)

    def transport(self, clock: Clock) -> "FleetTransport":
        """The round engine's way to these nodes."""
        return FleetTransport(self, clock)

    def close(self) -> None:
        """End Flower's run."""
        self._closing.set()
        self._beating.join()
        self._state.stop_run(self._run_id)

    def push(self, messages: Sequence[Message]) -> list[str | None]:
        """Store messages with all their objects; None for a node that is gone."""
        ids: list[str | None] = []
        with no_object_id_recompute():
            for message in messages:
                root = message.metadata.__dict__["_message_id"] = message.object_id
                objects, tree = get_all_nested_objects(message), get_object_tree(message)
                # The objects go first: a device may fetch the message as soon as it is stored.
                for object_id in self._objects.preregister(self._run_id, tree):
                    self._objects.put(object_id, objects[object_id].deflate())
                stored = self._state.store_message_ins(remove_content_from_message(message)) is not None
                if not stored:
                    self._objects.delete(root)
                ids.append(root if stored else None)
        for message in messages:
            self._wake(NodeId(message.metadata.dst_node_id))
        return ids

    def pull(self, message_ids: set[str]) -> list[Message]:
        """Replies to these messages, claimed once; their objects may still be on the way."""
        return self._state.get_message_res(set(message_ids), self._run_id)

    def inflate(self, reply: Message) -> Message | None:
        """The reply with its content; None while an object is missing."""
        root = reply.metadata.message_id
        contents: dict[str, bytes] = {}
        for tree in iterate_object_tree(self._objects.get_object_tree(root)):
            content = self._objects.get(tree.object_id)
            if not content:
                return None
            contents[tree.object_id] = content
        self._objects.delete(root)
        whole = cast("Message", inflate_object_from_contents(root, contents))
        whole.metadata.__dict__["_message_id"] = root
        return whole

    def forget(self, message_ids: set[str]) -> None:
        """Take back what nobody waits for any more: a late reply is refused."""
        replies = [reply for one in message_ids if (reply := self._state.message_ins_id_to_message_res_id.get(one))]
        self._state.delete_messages(message_ids)
        for message_id in (*message_ids, *replies):
            self._objects.delete(message_id)

    def activations(self, node: NodeId) -> int:
        """How often the node connected since this process began."""
        return self._activations.get(node, 0)

    @property
    def arrivals(self) -> int:
        """Grows whenever there may be something new to hear; see ``wait``."""
        return self._arrivals

    def wait(self, seen: int, timeout_s: float) -> None:
        """Returns once ``arrivals`` differs from ``seen``, or after ``timeout_s``."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._arrivals != seen, timeout_s)

    def _extend(self) -> None:
        """See the module's text. Flower has no hooks; the state's methods are called by name from its handlers."""
        activate = self._state.activate_node
        keep, fetch = self._state.store_object, self._state.get_message_ins

        def taken_back(node_id: int, heartbeat_interval: float) -> bool:
            known = activate(node_id, heartbeat_interval)
            known = known or self._state.acknowledge_node_heartbeat(node_id, heartbeat_interval)
            if known:
                self._activations[NodeId(node_id)] = self.activations(NodeId(node_id)) + 1
                self._notify()
            return known

        def stored(run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
            kept = keep(run_id, session_id, object_id, object_content)
            if self._objects.is_root(object_id):  # a message comes after its parts
                self._notify()
            return kept

        def fetched(node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
            known = self._state.nodes.get(node_id)
            if known is not None and known.status in (NodeStatus.REGISTERED, NodeStatus.OFFLINE):
                taken_back(node_id, HEARTBEAT_DEFAULT_INTERVAL)  # it outlived a restart of ours
            return fetch(node_id, limit, run_id=run_id)

        for name, method in (("activate_node", taken_back), ("store_object", stored), ("get_message_ins", fetched)):
            setattr(self._state, name, method)

    def _notify(self) -> None:
        with self._arrived:
            self._arrivals += 1
            self._arrived.notify_all()

    def _open_run(self) -> tuple[int, int]:
        """A Flower run in state running; one a process, whatever it carries."""
        state = self._state
        run_id = state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, primary_task_type=TaskType.SERVER_APP
        )
        (run,) = state.get_run_info(run_ids=[run_id])
        task_id = run.primary_task_id
        if task_id is None or state.claim_task(task_id) is None or not state.activate_task(task_id):
            raise RunFailed(f"Expected Flower to start run {run_id}, found it refused; remove its database.")
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, task_id
        return run_id, task_id

    def _beat(self) -> None:
        while not self._closing.wait(TASK_HEARTBEAT_S):
            if not self._state.acknowledge_task_heartbeat(self._task_id):  # e.g. the machine slept for minutes
                self._run_id, self._task_id = self._open_run()


class FleetTransport:
    """``Transport`` to the devices of a deployment.

    A device that connects again while its answer is awaited is asked again: it answers a repeat as it did before.
    """

    def __init__(self, link: SuperLink, clock: Clock) -> None:
        self._link, self._clock = link, clock

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        return self._link.online()

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``."""
        link, clock = self._link, self._clock
        started, seen = clock.monotonic_s(), link.arrivals
        asked: dict[str, NodeId] = {}
        connected: dict[NodeId, int] = {}
        coming: list[Message] = []

        def ask(nodes: Sequence[NodeId]) -> list[Reply]:
            ttl = started + deadline_s - clock.monotonic_s() + 1.0
            connected.update({node: link.activations(node) for node in nodes})
            messages = [
                Message(to_record(requests[node]), dst_node_id=node, message_type=stage.value, ttl=ttl)
                for node in nodes
            ]
            ids = link.push(messages)
            asked.update({message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id})
            return [
                _gone(node, len(requests[node])) for message_id, node in zip(ids, nodes, strict=True) if not message_id
            ]

        waiting = set(requests)
        try:
            for lost in ask(list(requests)):
                waiting.discard(lost.node)
                yield lost
            while waiting and (left_s := started + deadline_s - clock.monotonic_s()) > 0:
                open_ids = {message_id for message_id, node in asked.items() if node in waiting}
                coming += link.pull(open_ids)
                for claimed in list(coming):
                    node = asked[claimed.metadata.reply_to_message_id]
                    whole = claimed if claimed.has_error() else link.inflate(claimed)
                    if whole is None:
                        continue
                    coming.remove(claimed)
                    if node in waiting:
                        waiting.discard(node)
                        yield reply_of(whole, node, len(requests[node]), clock.monotonic_s() - started)
                again = [node for node in sorted(waiting) if link.activations(node) != connected[node]]
                for lost in ask(again) if again else ():
                    waiting.discard(lost.node)
                    yield lost
                if waiting:
                    link.wait(seen, min(left_s, 1.0))
                    seen = link.arrivals
        finally:
            link.forget(set(asked))


def _keep_fleet(app: Starlette) -> None:
    """Leaves Flower's application its Fleet routes, and the middleware that these need: each costs a millisecond.

    Control and Runtime, which the gate lets nobody reach, are not there at all.
    """
    # The first translates errors.
    needed: tuple[object, ...] = (BaseHTTPMiddleware, ProtobufTranslationMiddleware, NodeAuthMiddleware)
    app.user_middleware = [one for one in app.user_middleware if cast("object", one.cls) in needed]
    routers = ((route, getattr(route, "original_router", None)) for route in app.router.routes)
    app.router.routes = [route for route, router in routers if getattr(router, "prefix", "") == "/v1/fleet"]
    if len(app.user_middleware) != len(needed) or len(app.router.routes) != 1:
        raise RunFailed("Expected Flower's Fleet routes with three layers of middleware; use the pinned flwr.")


def _node_of(public_key: bytes) -> NodeId:
    """A node's id: 63 bits of its key's digest, so that it is the same after a restart."""
    return NodeId(int.from_bytes(hashlib.sha256(public_key).digest()[:8]) >> 1)


def _gone(node: NodeId, bytes_down: int) -> Reply:
    """The answer of a node that was expelled before it could be asked."""
    error = "not enrolled any more"
    return Reply(node=node, payload=None, error=error, seconds=0.0, bytes_down=bytes_down, bytes_up=0)


def _settings() -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="127.0.0.1:0",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,  # there is no listener: the gate does TLS
        certificates=None,
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
    )
