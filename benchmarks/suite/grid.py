"""A Flower Grid whose clients answer one after the other in this process, and which counts every message's bytes.

Messages are deflated to Flower's wire objects and inflated again, as a network would have them.
"""

import uuid
from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["InTurn"]


class InTurn(Grid):
    """Clients that answer one after the other; node i is partition i.

    Args:
        app: the clients'.
        clients: how many.

    Attributes:
        bytes_down, bytes_up: of every message's wire objects so far.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        self._app, self._nodes = app, list(range(clients))
        self._states = {node: RecordDict() for node in self._nodes}
        self._run = Run.create_empty(1)
        self._answers: dict[str, Message] = {}
        self.bytes_down = self.bytes_up = 0
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
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Part of ``Grid``: each client answers at once."""
        sent = list(messages)
        for message in sent:
            arrived, size = over_the_wire(message)
            self.bytes_down += size
            node = arrived.metadata.dst_node_id
            config = {"partition-id": node, "num-partitions": len(self._nodes)}
            context = Context(run_id=1, node_id=node, node_config=config, state=self._states[node], run_config={})
            reply = self._app(message=arrived, context=context)
            self._answers[message.metadata.message_id], size = over_the_wire(reply)
            self.bytes_up += size
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Part of ``Grid``."""
        return [self._answers.pop(name) for name in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Part of ``Grid``."""
        return self.pull_messages(self.push_messages(messages))


def over_the_wire(message: Message) -> tuple[Message, int]:
    """The message as the other side gets it, and the size of its objects."""
    name = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = name
    objects = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, dict(objects))
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = name
    return arrived, sum(map(len, objects.values()))
