"""Flower's Fleet protocol without a web stack: a request's bytes in, the answer's out.

What a route does is Flower's own function for it; here is what its FastAPI application puts around them: which message
a route takes, that a node speaks for itself only, and what an error looks like (docs/adr/0008). Who may ask at all is
the gateway's.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from fedpeft.flower.state import FleetState

__all__ = ["ROUTES", "Answer", "FleetHandlers"]

PREFIX = "/v1/fleet/"
ROUTES: Mapping[str, type[Message]] = {
    f"{PREFIX}activate-node": ActivateNodeRequest,
    f"{PREFIX}deactivate-node": DeactivateNodeRequest,
    f"{PREFIX}send-node-heartbeat": SendNodeHeartbeatRequest,
    f"{PREFIX}pull-messages": PullMessagesRequest,
    f"{PREFIX}push-messages": PushMessagesRequest,
    f"{PREFIX}push-object": PushObjectRequest,
    f"{PREFIX}pull-object": PullObjectRequest,
    f"{PREFIX}confirm-message-received": ConfirmMessageReceivedRequest,
}
"""Flower's Fleet routes that a device needs, and what each takes. Not among them: registering and unregistering nodes,
which enrolment does, and fetching run descriptions and apps, because no device runs code that it was sent."""

PARTS = 4096
"""Of one answer: those of 20 GB. Each is a record in memory, whoever names it."""

_PROTOBUF, _JSON = b"application/x-protobuf", b"application/json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP response.

    Args:
        status: of HTTP.
        kind: content type.
        body: all of it.
    """

    status: int
    kind: bytes
    body: bytes


class FleetHandlers:
    """Answers Fleet requests; thread-safe, and quick unless the body is large.

    Args:
        state: shared with the round engine.
    """

    def __init__(self, state: FleetState) -> None:
        self._state = state

    def __call__(self, route: str, key: bytes, body: bytes) -> Answer:
        """One request.

        Args:
            route: one of ``ROUTES``.
            key: the public key (PEM) that signed the request.
            body: as it came.
        """
        try:
            request = ROUTES[route].FromString(body)
            if not self._is_its_own(request, key):
                return _error(401, "Invalid SuperNode authentication")
            if not self._is_of_this_run(request):
                return _error(410, "The message is of before this coordinator's start.")
            if isinstance(request, PushMessagesRequest) and not _has_few_parts(request):
                return _error(413, f"Expected one answer of at most {PARTS} parts.")
            return Answer(status=200, kind=_PROTOBUF, body=self._answer(request).SerializeToString())
        except (DecodeError, IndexError):
            return _error(400, "Invalid protobuf payload")
        except FlowerError as error:
            _log.warning("%s: Flower error %s: %s", route, error.code, error.message)
            known = API_ERROR_MAP[error.code]
            text = json.dumps(error.to_json(known.public_message)).encode()
            return Answer(status=known.http_status_code, kind=_JSON, body=text)
        except Exception as error:  # whatever Flower meets, the device hears of it and may try again
            _log.exception("%s", route)
            return _error(500, type(error).__name__)

    def _answer(self, request: Message) -> Message:
        state = self._state
        store = state.object_store
        match request:
            case ActivateNodeRequest():
                return fleet_handlers.activate_node(request, state)
            case DeactivateNodeRequest():
                return fleet_handlers.deactivate_node(request, state)
            case SendNodeHeartbeatRequest():
                return fleet_handlers.send_node_heartbeat(request, state)
            case PullMessagesRequest():
                return fleet_handlers.pull_messages(request, state, store)
            case PushMessagesRequest():
                return fleet_handlers.push_messages(request, state)
            case PushObjectRequest():
                return fleet_handlers.push_object(request, state)
            case PullObjectRequest():
                return fleet_handlers.pull_object(request, state)
            case ConfirmMessageReceivedRequest():
                # Stock deletes the message here; a device that is killed before it answers needs it again.
                return ConfirmMessageReceivedResponse()
        raise TypeError(f"Expected a Fleet request, found {type(request).__name__}.")

    def _is_its_own(self, request: Message, key: bytes) -> bool:
        """Whether the node that a request speaks for is the one whose key signed it."""
        if isinstance(request, ActivateNodeRequest):
            return bool(request.public_key == key)
        node = request.node_id if isinstance(request, DeactivateNodeRequest) else request.node.node_id
        if isinstance(request, PushMessagesRequest) and any(
            message.metadata.src_node_id != node for message in request.messages_list
        ):
            return False
        return self._state.get_node_id_by_public_key(key) == node

    def _is_of_this_run(self, request: Message) -> bool:
        if isinstance(request, PushMessagesRequest):
            return all(message.metadata.run_id in self._state.run_ids for message in request.messages_list)
        run_id = getattr(request, "run_id", None)
        return run_id is None or run_id in self._state.run_ids


def _has_few_parts(request: PushMessagesRequest) -> bool:
    """Whether it is about one message, whose tree of objects is as small as an answer's."""
    waiting, found = list(request.message_object_trees), 0
    while waiting and found <= PARTS:
        found += 1
        waiting.extend(waiting.pop().children)
    return found <= PARTS and max(len(request.messages_list), len(request.message_object_trees)) <= 1


def _error(status: int, detail: str) -> Answer:
    return Answer(status=status, kind=_JSON, body=json.dumps({"detail": detail}).encode())
