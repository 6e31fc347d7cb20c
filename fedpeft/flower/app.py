"""The device's ClientApp: Flower's half of a device, around the handler that is ours."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedpeft.errors import FedpeftError
from fedpeft.flower.records import from_record, to_record
from fedpeft.ids import NodeId
from fedpeft.round.transport import Stage

__all__ = ["Handler", "NodeContext", "client_app"]

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
