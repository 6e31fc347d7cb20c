"""What a round needs of a network: send one request per node, hear replies as they come.

The round never sees Flower: ``fedpeft.flower.GridTransport`` is the implementation that runs, in the
simulation as in the deployment; ``fedpeft.testing`` has faulty ones.
"""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedpeft.ids import NodeId

__all__ = ["SMALL_ANSWER_BYTES", "Reply", "Requests", "Stage", "Transport"]


SMALL_ANSWER_BYTES = 64 * 2**20
"""That an answer without what is summed may have: keys, shares and metrics of hundreds of devices, many times over."""


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


class Requests(Mapping[NodeId, bytes]):
    """What to send to whom, each made when it is asked for: a round's requests never lie in memory all at once.

    Args:
        nodes: whom to ask, in order.
        make: the request of one node; called once for each time that it is looked up.
        answer_bytes: that an answer can have; a transport may refuse a larger one before it has come.
    """

    def __init__(
        self, nodes: Sequence[NodeId], make: Callable[[NodeId], bytes], *, answer_bytes: int = SMALL_ANSWER_BYTES
    ) -> None:
        self._nodes, self._make, self._known = nodes, make, frozenset(nodes)
        self.answer_bytes = answer_bytes

    def __getitem__(self, node: NodeId) -> bytes:
        if node not in self._known:
            raise KeyError(node)
        return self._make(node)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node: object) -> bool:
        return node in self._known


class Transport(Protocol):
    """A set of reachable nodes and one way to ask them."""

    def nodes(self) -> Sequence[NodeId]:
        """The nodes reachable now, ascending."""
        ...

    def elsewhere(self) -> int:
        """How many more could be reached that another run has now: the size of a round counts them."""
        ...

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """Send every request and yield at most one reply per node, in order of arrival.

        Ends when every node has answered or has had ``deadline_s`` seconds for it. Real devices have them at once,
        from the call; virtual ones take turns on one machine, and each has them from when its turn begins.
        A node that does not answer in time yields nothing; what it sends later is discarded.

        Args:
            stage: which exchange.
            requests: node -> request; each value is looked up once, shortly before it is sent.
            deadline_s: > 0.
        """
        ...
