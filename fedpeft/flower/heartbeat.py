"""A device's signs of life while it is at work: training takes longer than the coordinator's patience."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node

from fedpeft.flower.fleet_client import FleetClient, RequestRefused, Unanswered

__all__ = ["HEARTBEAT_S", "beating"]

HEARTBEAT_S = 20
"""Promised to the coordinator; after two of them without a sign a device counts as gone."""

_log = logging.getLogger(__name__)


@contextmanager
def beating(client: FleetClient, node: Node, refused: Callable[[RequestRefused], None]) -> Iterator[None]:
    """Heartbeats from a thread of their own, until the block is left.

    Args:
        client: asks.
        node: whose.
        refused: told of every refusal.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.7 * HEARTBEAT_S):
            request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_S)
            try:
                client.ask(request, SendNodeHeartbeatResponse)
            except RequestRefused as error:
                refused(error)
            except Unanswered as error:
                _log.info("heartbeat: %s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
