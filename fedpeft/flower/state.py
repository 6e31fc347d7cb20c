"""Flower's link state as a coordinator of ours needs it: nothing is asked for twice, nothing is looked for in vain.

Flower's own in-memory state (docs/adr/0007), with what stock leaves out:

- a message with its content in it is whole, in both directions: no object of it is registered, pushed or pulled
  (docs/adr/0008);
- who asks for a message while its last one is unanswered did not get that one, and gets it again (stock: never): a
  lost response, or a device that was killed, costs no round. Nothing is answered twice, see ``fedpeft.secagg.ledger``;
- a node that comes back within its heartbeat's patience, or whose coordinator has come back, is taken back at once
  (stock: refused until the patience is over);
- finding a node's message or the replies that have come costs the same however many there are (stock: every message).
"""

import logging
from collections.abc import Callable, Collection

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import is_valid_sha256_hash, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from fedpeft.flower.objects import FleetObjects
from fedpeft.flower.records import from_record, is_inline

__all__ = ["DELIVERIES", "FleetState"]

DELIVERIES = 5
"""How often a message is handed to a node that does not answer it; a device whose answers are refused must not turn in
circles."""


_log = logging.getLogger(__name__)


class FleetState(InMemoryLinkState):
    """Implements Flower's ``LinkState``; thread-safe.

    Args:
        objects: where contents on their way are kept.
        arrived: called when there may be something new to hear; must return at once.
    """

    def __init__(self, objects: FleetObjects, arrived: Callable[[], None]) -> None:
        super().__init__(NoOpFederationManager(), objects)
        self._contents, self._notify = objects, arrived
        self._due: dict[int, dict[str, int]] = {}  # node -> its unanswered messages -> how often handed out
        self._whole: dict[str, None] = {}  # messages with a whole reply that nobody claimed yet
        self._answer_parts: dict[str, int] = {}  # messages -> how many objects their answer may have
        self._asked_by_reply: dict[str, str] = {}  # replies whose objects are on the way -> their message

    def send(self, message: Message, *, answer_parts: int) -> bool:
        """Keep a message for its node; whether the node is known. Its objects, if any, were put before.

        Args:
            message: for one node.
            answer_parts: objects that an answer may have; one of more is refused before any of them comes: the whole of
                an answer lies in memory once it is claimed, and its device chooses its size.
        """
        with self.lock:
            if self.store_message_ins(message) is None:
                return False
            self._answer_parts[message.metadata.message_id] = answer_parts
            self._due.setdefault(message.metadata.dst_node_id, {})[message.metadata.message_id] = 0
        return True

    def is_due(self, node_id: int) -> bool:
        """Whether a message waits for this node that it may be handed."""
        with self.lock:
            return any(times < DELIVERIES for times in self._due.get(node_id, {}).values())

    def claim(self, message_ids: Collection[str]) -> list[tuple[str, Message | bytes | None]]:
        """The replies to these messages that have come whole, each once: a message, the payload that one had in it, or
        None for what is no message at all.
        """
        with self.lock:
            ready = [one for one in self._whole if one in message_ids]
            for one in ready:
                del self._whole[one]
            replies = [(one, self.message_res_store[self.message_ins_id_to_message_res_id[one]]) for one in ready]
        return [(one, self._with_content(reply)) for one, reply in replies]

    def forget(self, message_ids: Collection[str]) -> None:
        """Take back what nobody waits for any more: a late reply is refused."""
        with self.lock:
            self.delete_messages(set(message_ids))
            for message_id in message_ids:
                self._contents.delete(message_id)

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """See ``LinkState``."""
        with self.lock:
            for message_id in message_ins_ids:
                self._withdraw(message_id)
                self._answer_parts.pop(message_id, None)
                message = self.message_ins_store.pop(message_id, None)
                if message is not None:
                    self._settle(message)

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """See ``LinkState``."""
        known = super().activate_node(node_id, heartbeat_interval)
        return known or self.acknowledge_node_heartbeat(node_id, heartbeat_interval)

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """See ``LinkState``; one at most, the oldest."""
        with self.lock:
            known = self.nodes.get(node_id)
            if known is not None and known.status in (NodeStatus.REGISTERED, NodeStatus.OFFLINE):
                self.activate_node(node_id, HEARTBEAT_DEFAULT_INTERVAL)  # it outlived a restart of ours
            for message_id, handed_out in self._due.get(node_id, {}).items():
                message = self.message_ins_store[message_id]
                expired = message.metadata.created_at + message.metadata.ttl <= now().timestamp()
                if expired or handed_out == DELIVERIES:
                    continue
                self._withdraw(message_id)  # half a reply, of a process that is no more
                self._due[node_id][message_id] = handed_out + 1
                message.metadata.delivered_at = now().isoformat()
                return [message]
        return []

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """See ``LinkState``; devices send replies only."""
        reply_id, asked = message.metadata.message_id, message.metadata.reply_to_message_id
        missing: list[str] = []
        with self.lock:
            # The id becomes the name of a file, and of the object that says when the reply is whole.
            named = is_valid_sha256_hash(reply_id) and object_tree.object_id == reply_id
            parts = sum(1 for _ in iterate_object_tree(object_tree))
            fits = parts <= self._answer_parts.get(asked, parts)
            stored = named and fits and self.store_message_res(message) is not None
            owed = asked in self._due.get(message.metadata.src_node_id, ())
            if stored and owed and message.has_error():
                self._complete(asked)
            elif stored and owed and is_inline(message.content):
                self._contents.keep(reply_id, from_record(message.content))
                self.message_res_store[reply_id] = remove_content_from_message(message)
                self._complete(asked)
            elif stored and owed:
                self._asked_by_reply[reply_id] = asked
                missing = self.preregister_object_tree(object_tree, session_id)
            if not missing:
                self._cleanup_push_session(session_id, cleanup_messages=False)
        return stored, missing

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """See ``LinkState``."""
        with self.lock:  # before Flower's lock of its sessions, as everywhere
            kept = super().store_object(run_id, session_id, object_id, object_content)
            asked = self._asked_by_reply.get(object_id)
            if kept and asked is not None:  # a message comes after its parts
                del self._asked_by_reply[object_id]
                self._complete(asked)
        return kept

    def get_object(self, run_id: int, object_id: str) -> bytes | None:
        """See ``LinkState``."""
        with self.lock:
            return super().get_object(run_id, object_id)

    def _on_push_session_expired(self, message_object_ids: set[str]) -> None:
        for reply_id in message_object_ids:
            if reply_id in self._asked_by_reply:
                self._withdraw(self._asked_by_reply[reply_id])

    def _complete(self, message_id: str) -> None:
        self._whole[message_id] = None
        self._settle(self.message_ins_store[message_id])
        self._notify()

    def _settle(self, message: Message) -> None:
        """Its node owes nothing for it any more."""
        due = self._due.get(message.metadata.dst_node_id, {})
        due.pop(message.metadata.message_id, None)
        if not due:
            self._due.pop(message.metadata.dst_node_id, None)

    def _withdraw(self, message_id: str) -> None:
        """Take a message's reply back, whole or in parts."""
        reply_id = self.message_ins_id_to_message_res_id.pop(message_id, None)
        self._whole.pop(message_id, None)
        if reply_id is None:
            return
        self.message_res_store.pop(reply_id, None)
        self._asked_by_reply.pop(reply_id, None)
        session = self._object_push_session_by_root.get(reply_id)
        if session is not None:
            self._cleanup_push_session(session, cleanup_messages=False)
        self._contents.delete(reply_id)

    def _with_content(self, reply: Message) -> Message | bytes | None:
        reply_id = reply.metadata.message_id
        if reply.has_error():
            return reply
        kept = self._contents.take(reply_id)
        if kept is not None:
            return kept
        try:
            tree = self._contents.get_object_tree(reply_id)
            contents = {part.object_id: self._contents.get(part.object_id) or b"" for part in iterate_object_tree(tree)}
            whole = inflate_object_from_contents(reply_id, contents)
        except Exception as error:  # the device chose every byte of it, and Flower names no exceptions
            _log.warning("a reply of node %s is none: %s", reply.metadata.src_node_id, type(error).__name__)
            return None
        finally:
            self._contents.delete(reply_id)
        return whole if isinstance(whole, Message) else None
