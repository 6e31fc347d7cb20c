"""What the round engine needs of a network: send one request a node, hear replies as they come.

The engine never sees Flower: ``fedpeft.flower.GridTransport`` is the implementation that runs, in the
simulation as in the deployment; ``fedpeft.testing`` has faulty ones.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedpeft.ids import NodeId

__all__ = ["Reply", "Stage", "Transport"]


class Stage(enum.Enum):
    """The exchanges of a run, by their Flower message type (``category.action``)."""

    PROFILE = "query.profile"
    FIT = "train.fit"
    SHARE = "train.share"
    MASK = "train.mask"
    CONSIST = "train.consist"
    REVEAL = "train.reveal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back from one node.

    Args:
        node: who answered.
        payload: the encoded reply; None when the node failed without one.
        error: why there is no payload, in the transport's words; empty otherwise.
        seconds: from sending the request to receiving this, by the coordinator's clock.
        bytes_down: size of the request's payload.
        bytes_up: size of the reply's payload.
    """

    node: NodeId
    payload: bytes | None
    error: str
    seconds: float
    bytes_down: int
    bytes_up: int


class Transport(Protocol):
    """A set of reachable nodes and one way to ask them."""

    def nodes(self) -> Sequence[NodeId]:
        """The nodes reachable now, ascending."""
        ...

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """Send every request and yield at most one reply a node, in order of arrival.

        Ends when every node has answered or ``deadline_s`` seconds after the call, whichever is first.
        A node that does not answer in time yields nothing; what it sends later is discarded.
        """
        ...
