"""The device's ClientApp: Flower's half of a device, around the handler that is ours."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedpeft.flower.records import from_record, to_record
from fedpeft.ids import NodeId
from fedpeft.round.transport import Stage

__all__ = ["Handler", "NodeContext", "client_app"]

FAILED = "the device could not answer; its log has the details"

_log = logging.getLogger(__name__)

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


def client_app(handler: Handler) -> ClientApp:
    """The device's ClientApp: every stage of the protocol goes to ``handler``.

    Whatever the handler raises becomes the same error reply: neither the text nor the class of an error may depend on
    the device's data. The cause is in the device's own log.
    """
    app = ClientApp()

    def respond(message: Message, context: Context) -> Message:
        partition = context.node_config.get("partition-id")
        node = NodeContext(node=NodeId(context.node_id), partition=None if partition is None else int(str(partition)))
        try:
            payload = handler(node, Stage(message.metadata.message_type), from_record(message.content))
        except Exception:
            _log.exception("the device's handler failed")
            return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=FAILED), reply_to=message)
        return Message(to_record(payload), reply_to=message)

    for stage in Stage:
        category, action = stage.value.split(".")
        getattr(app, category)(action)(respond)
    return app
