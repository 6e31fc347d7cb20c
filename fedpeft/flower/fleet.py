"""The device's half of Flower's Fleet protocol: one long-lived connection, our ClientApp.

Stock Flower starts a process for every message; here one process stays, and what it runs is the ClientApp that it is
given: nothing that a coordinator sends is ever code (no FAB is asked for). Stock also ends itself by a signal when a
request is refused; here a refusal is an exception with its reason, and everything else is tried again.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, NotEnrolled
from fedpeft.flower.fleet_client import FleetClient, FleetTarget, RequestRefused, Unanswered
from fedpeft.flower.heartbeat import HEARTBEAT_S, beating
from fedpeft.flower.records import is_inline
from fedpeft.ids import NodeId

__all__ = ["REFUSAL_HEADER", "Fleet"]

REFUSAL_HEADER = "fedpeft-refusal"
"""Why the gateway refuses a device: ``revoked`` is for good, ``clock`` until it is mended; the body says more."""
RETRIED = frozenset({401, 429, 500, 502, 503, 504})
"""Worth another, freshly signed attempt: a limit, a restart, a repeated timestamp, a clock."""
UNKNOWN, UNKNOWN_ATTEMPTS = 401, 6
"""So often in a row without a clock to blame: the coordinator does not know this key and never will."""
TOLD_AGAIN_S = 60.0
"""Between two lines of the log that say the same."""
BROKEN = 500
"""What Flower answers about a message of before its restart; the engine asks anew, so nothing is lost with it."""
BROKEN_ATTEMPTS = 3

LONGEST_PAUSE_S = 2.0
HOLD_S = 4
"""After an answer: for the next message of the same round, while others are at work still."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class _KeyChanged(Exception):
    """Another key is in the home than the one that this connection signs with."""


class Fleet:
    """One device's connection.

    Args:
        target: from enrolment; read again when the coordinator does not know the key: it may have been rotated.
        app: what answers every message.
        wait: called when there was no message, with whether one was answered just before: returns when it may be time
            for another look.
        stopping: whether to end.
        refused: told of a refusal that a heartbeat met while ``app`` was at work.
    """

    def __init__(
        self,
        target: Callable[[], FleetTarget],
        app: ClientApp,
        *,
        wait: Callable[[bool], None],
        stopping: Callable[[], bool],
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.WARNING)
        self._target = target
        self._connect(target())
        self._app, self._wait, self._stopping, self._on_refusal = app, wait, stopping, refused
        self._refused: NotEnrolled | None = None
        self._unknown = 0
        self._told: tuple[str, float] = ("", 0.0)

    def serve(self, connected: Callable[[NodeId], None] = lambda node: None) -> None:
        """Answer messages until told to stop.

        Raises:
            NotEnrolled: the coordinator refuses this device; says why.
        """
        while not self._stopping():
            try:
                self._session(connected)
            except _KeyChanged:
                _log.info("the key in the home is another one now: connecting anew")
                self._client.close()
                self._connect(self._target())

    def _connect(self, target: FleetTarget) -> None:
        self._reached, self._key = target, target.node_key
        self._client = FleetClient(target)
        self._node = Node(node_id=0)

    def _session(self, connected: Callable[[NodeId], None]) -> None:
        """Answer messages with one key until told to stop."""
        answer = self._retried(
            lambda: self._client.ask(
                ActivateNodeRequest(public_key=self._client.public_key, heartbeat_interval=HEARTBEAT_S),
                ActivateNodeResponse,
            ),
            insist=True,
        )
        if answer is None:
            return
        self._node = Node(node_id=answer.node_id)
        connected(NodeId(answer.node_id))
        with beating(self._client, self._node, self._refuse):
            answered = False
            while not self._stopping():
                if self._refused is not None:
                    raise self._refused
                # Within a round the next message is a moment away: the pull is held until it comes.
                if self._once(hold_s=HOLD_S if answered else 0):
                    answered = True
                else:
                    self._wait(answered)
                    answered = False
        try:
            self._client.ask(DeactivateNodeRequest(node_id=self._node.node_id), DeactivateNodeResponse)
        except (RequestRefused, Unanswered):
            _log.info("the coordinator was not told that this device leaves")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def let_go(self) -> None:
        """End a request that only waits; from any thread, or a signal's handler."""
        self._client.let_go()

    def _once(self, *, hold_s: int) -> bool:
        """Fetch and answer one message, for which the coordinator may wait so long; False when there was none."""
        pull = PullMessagesRequest(node=self._node)
        found = self._retried(lambda: self._client.ask(pull, PullMessagesResponse, hold_s=hold_s))
        if found is None or not found.messages_list:
            return False
        arrived = message_from_proto(found.messages_list[0])
        # A small message has its content in it; the parts of a large one are fetched.
        inline = arrived.has_content() and is_inline(arrived.content)
        message = arrived if inline else self._whole(arrived, found.message_object_trees[0])
        if message is None:
            return True
        context = Context(
            run_id=message.metadata.run_id,
            node_id=self._node.node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        self._send(self._app(message=message, context=context))
        return True

    def _whole(self, arrived: Message, tree: ObjectTree) -> Message | None:
        """The message with its content; None when it was taken back meanwhile."""
        run_id, root = arrived.metadata.run_id, arrived.metadata.message_id
        contents: dict[str, bytes] = {}
        for object_id in dict.fromkeys(node.object_id for node in iterate_object_tree(tree)):
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            part = self._retried(partial(self._client.ask, request, PullObjectResponse))
            if part is None or not part.object_available:
                return None
            contents[object_id] = part.object_content
        confirm = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=root)
        self._retried(lambda: self._client.ask(confirm, ConfirmMessageReceivedResponse))
        message = inflate_object_from_contents(root, contents)
        if not isinstance(message, Message):
            return None
        message.metadata.__dict__["_message_id"] = root
        return message

    def _send(self, reply: Message) -> None:
        if reply.has_error() or is_inline(reply.content):
            reply_id = reply.metadata.__dict__["_message_id"] = os_entropy(32).hex()
            self._push(reply, ObjectTree(object_id=reply_id))
            return
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            told = self._push(remove_content_from_message(reply), tree)
            for object_id in told.objects_to_push if told is not None else ():
                part = PushObjectRequest(
                    node=self._node,
                    run_id=run_id,
                    object_id=object_id,
                    object_content=objects[object_id].deflate(),
                    session_id=told.session_id if told is not None else "",
                )
                self._retried(partial(self._client.ask, part, PushObjectResponse))

    def _push(self, reply: Message, tree: ObjectTree) -> PushMessagesResponse | None:
        push = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(reply)],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
        return self._retried(lambda: self._client.ask(push, PushMessagesResponse))

    def _retried(self, call: Callable[[], T], *, insist: bool = False) -> T | None:
        """The answer; None when the coordinator will not take this request, or when we are to stop.

        Args:
            call: the request.
            insist: whether it makes sense however often Flower breaks on it.

        Raises:
            NotEnrolled: it will not take any.
        """
        pause_s, broken = 0.05, 0
        while not self._stopping():
            try:
                answer = call()
                self._unknown = 0
                return answer
            except RequestRefused as error:
                status = error.status
                broken += status == BROKEN
                self._heed(error)
                if status not in RETRIED and insist:
                    raise ConfigInvalid(
                        f"Expected a fedpeft coordinator of this version at {self._reached.address}, found the answer "
                        f"{status}; compare versions and ports with its operator."
                    ) from error
                if status not in RETRIED or (broken == BROKEN_ATTEMPTS and not insist):
                    _log.warning("the coordinator answered %s to %s", status, error.path)
                    return None
                self._tell(f"the coordinator answered {status} {error.text[:300]}".rstrip())
            except Unanswered as error:
                _log.info("no connection to the coordinator (%s); trying again in %.2f s", error, pause_s)
                if trouble := self._reached.trouble:
                    self._tell(f"no way to the coordinator: {trouble}")
                elif pause_s == LONGEST_PAUSE_S:  # for three seconds: longer than a lost connection takes
                    self._tell(f"no answer from the coordinator at {self._reached.address} ({error}); trying again")
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return None

    def _heed(self, refused: RequestRefused) -> None:
        """Returns when trying again may help.

        Raises:
            NotEnrolled: it does not.
            _KeyChanged: with another key.
        """
        reason = refused.headers.get(REFUSAL_HEADER)
        if reason == "revoked":
            raise NotEnrolled(refused.text)
        if refused.status != UNKNOWN or reason is not None:
            self._unknown = 0
            return
        if self._target().node_key != self._key:
            raise _KeyChanged
        self._unknown += 1
        if self._unknown >= UNKNOWN_ATTEMPTS:
            raise NotEnrolled(
                "the coordinator does not know this device's key: it was replaced, or the coordinator's registry is "
                "older than this device's enrolment"
            )

    def _tell(self, line: str) -> None:
        now = SystemClock().monotonic_s()
        if line != self._told[0] or now - self._told[1] >= TOLD_AGAIN_S:
            self._told = (line, now)
            _log.warning("%s", line)

    def _sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def _refuse(self, error: RequestRefused) -> None:
        """What a heartbeat met."""
        if error.headers.get(REFUSAL_HEADER) == "revoked":
            self._refused = NotEnrolled(error.text)
            self._on_refusal()
