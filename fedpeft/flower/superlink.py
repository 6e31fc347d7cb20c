"""The coordinator's half of Flower's Fleet protocol, in this process: its state and handlers, no listener.

Flower's SuperLink serves Fleet, Control and Runtime on one port, and Control has no authentication: whoever reaches it
registers keys and starts code on nodes. Here there is no such application (docs/adr/0004, 0008): the gateway hands the
Fleet requests that it lets through to ``fedpeft.flower.handlers``, and the round engine works on the state directly
(``fedpeft.flower.exchange``), so neither Control nor Runtime can be reached from anywhere.

Flower's state is its in-memory one (docs/adr/0007, ``fedpeft.flower.state``): nothing in it need outlive the process.
Who is enrolled is in the registry, what was committed in the run directory, and messages are asked anew after a restart
(docs/adr/0002). A node's id follows from its key, so devices that stayed up go on with the id that they have.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.entropy import os_entropy
from fedpeft.errors import RunFailed
from fedpeft.flower.handlers import FleetHandlers
from fedpeft.flower.objects import FleetObjects
from fedpeft.flower.records import is_inline, parts_of
from fedpeft.flower.state import FleetState
from fedpeft.ids import NodeId

__all__ = ["SuperLink", "node_of"]

TASK_HEARTBEAT_S = 20.0
"""Flower ends a run that has not been heard of for 60 s."""


class SuperLink:
    """Flower's state and handlers. Close it.

    Args:
        objects: a folder for large messages on their way; emptied.
        wake: told of a node that a message waits for.

    Attributes:
        handlers: answers Fleet requests, for the gateway.
    """

    def __init__(self, objects: Path, *, wake: Callable[[NodeId], None] = lambda node: None) -> None:
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._arrived = threading.Condition()
        self._arrivals = 0
        self._objects = FleetObjects(objects)
        self._state = FleetState(self._objects, self._notify)
        self.handlers = FleetHandlers(self._state)
        self._wake = wake
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
        state, node = self._state, node_of(public_key)
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

    def is_due(self, node: NodeId) -> bool:
        """Whether a message waits for this node."""
        return self._state.is_due(node)

    def online(self) -> Sequence[NodeId]:
        """The nodes heard of within their heartbeat's patience, ascending."""
        found = self._state.get_node_info(statuses=[NodeStatus.ONLINE])
        return sorted(NodeId(node.node_id) for node in found)

    def close(self) -> None:
        """End Flower's run."""
        self._closing.set()
        self._beating.join()
        self._state.stop_run(self._run_id)

    def push(self, messages: Iterable[Message], *, answer_bytes: int) -> list[str | None]:
        """Keep messages for their nodes; their ids, None for a node that is gone.

        Args:
            messages: each is let go before the next is looked at.
            answer_bytes: that an answer may have; one of more parts than that has is refused.
        """
        ids, nodes, most = [], [], parts_of(answer_bytes)
        for one in messages:
            ids.append(self._push_whole(one, most) if is_inline(one.content) else self._push_objects(one, most))
            nodes.append(NodeId(one.metadata.dst_node_id))
        for node in nodes:
            self._wake(node)
        return ids

    def claim(self, message_ids: Collection[str]) -> list[tuple[str, Message | bytes | None]]:
        """The replies to these messages that have come, each once; see ``FleetState.claim``."""
        return self._state.claim(message_ids)

    def forget(self, message_ids: Collection[str]) -> None:
        """Take back what nobody waits for any more: a late reply is refused."""
        self._state.forget(message_ids)

    @property
    def arrivals(self) -> int:
        """Grows whenever there may be something new to hear; see ``wait``."""
        return self._arrivals

    def wait(self, seen: int, timeout_s: float) -> None:
        """Returns once ``arrivals`` differs from ``seen``, or after ``timeout_s``."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._arrivals != seen, timeout_s)

    def _push_whole(self, message: Message, answer_parts: int) -> str | None:
        """A message with its content in it; Flower wants an object of its name, though nobody asks for it."""
        message_id = message.metadata.__dict__["_message_id"] = os_entropy(32).hex()
        self._objects.preregister(self._run_id, ObjectTree(object_id=message_id))
        return self._sent(message, message_id, answer_parts)

    def _push_objects(self, message: Message, answer_parts: int) -> str | None:
        with no_object_id_recompute():
            root = message.metadata.__dict__["_message_id"] = message.object_id
            objects, tree = get_all_nested_objects(message), get_object_tree(message)
            # The objects go first: a device may fetch the message as soon as it is stored.
            for object_id in self._objects.preregister(self._run_id, tree):
                self._objects.put(object_id, objects[object_id].deflate())
            return self._sent(remove_content_from_message(message), root, answer_parts)

    def _sent(self, message: Message, message_id: str, answer_parts: int) -> str | None:
        if self._state.send(message, answer_parts=answer_parts):
            return message_id
        self._objects.delete(message_id)
        return None

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
            raise RunFailed(f"Expected Flower to start run {run_id}, found it refused; use the pinned flwr.")
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, task_id
        return run_id, task_id

    def _beat(self) -> None:
        while not self._closing.wait(TASK_HEARTBEAT_S):
            if not self._state.acknowledge_task_heartbeat(self._task_id):  # e.g. the machine slept for minutes
                self._run_id, self._task_id = self._open_run()


def node_of(public_key: bytes) -> NodeId:
    """A node's id: 63 bits of its key's digest, so that it is the same after a restart."""
    return NodeId(int.from_bytes(hashlib.sha256(public_key).digest()[:8]) >> 1)
