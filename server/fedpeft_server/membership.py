"""The registry as the running coordinator sees it: who is behind a key or a node, now.

The registry is changed by other processes too (`clients revoke`); its revision is looked at with every question, so a
change holds from the next request on. Flower is kept in step: active devices have a node, ended ones have none.
"""

import threading
from collections.abc import Callable, Sequence

from fedpeft.ids import NodeId
from fedpeft.round.transport import Transport
from fedpeft_server.gate import Standing
from fedpeft_server.registry import ENDED, EnrolledDevice, Registry, Status

__all__ = ["Membership"]


class Membership:
    """Thread-safe.

    Args:
        registry: who was enrolled.
        enrol: node key (PEM) and name -> Flower's node.
        expel: node key -> nothing; Flower refuses it from now on.
    """

    def __init__(
        self, registry: Registry, *, enrol: Callable[[bytes, str], NodeId], expel: Callable[[bytes], None]
    ) -> None:
        self._registry, self._enrol, self._expel = registry, enrol, expel
        self._lock = threading.Lock()
        self._revision = -1
        self._by_key: dict[bytes, EnrolledDevice] = {}
        self._by_node: dict[NodeId, EnrolledDevice] = {}

    def standing(self, node_key: bytes) -> Standing | None:
        """What the gate asks."""
        with self._lock:
            self._refresh()
            device = self._by_key.get(node_key)
        if device is None or device.status is Status.PENDING:
            return None
        if device.status in ENDED:
            reason = f": {device.reason}" if device.reason else ""
            return Standing(
                device=device.name, revoked=f"{device.name} was {device.status.value} {device.since}{reason}"
            )
        return Standing(device=device.name)

    def device(self, node: NodeId) -> EnrolledDevice | None:
        """The active device behind a node; None for any other."""
        with self._lock:
            self._refresh()
            return self._by_node.get(node)

    def present(self, transport: Transport) -> Sequence[EnrolledDevice]:
        """The active devices that can be reached now, by name."""
        found = (self.device(node) for node in transport.nodes())
        return sorted((device for device in found if device is not None), key=lambda device: device.name)

    @property
    def enrolled(self) -> int:
        """How many devices are active, reachable or not."""
        with self._lock:
            self._refresh()
            return len(self._by_node)

    def refresh(self) -> None:
        """Bring Flower in step without a question."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        revision = self._registry.revision()
        if revision == self._revision:
            return
        devices = self._registry.devices()
        keys = {device.node_key: device for device in devices}
        for key in (self._by_key.keys() - keys.keys()) | {d.node_key for d in devices if d.status in ENDED}:
            self._expel(key)
        nodes: dict[NodeId, EnrolledDevice] = {}
        for device in devices:
            if device.status is Status.ACTIVE:
                node = self._enrol(device.node_key, device.name)
                nodes[node] = device
                if device.node_id != node:
                    self._registry.set_node(device.name, node)
        self._by_key, self._by_node = keys, nodes
        self._revision = self._registry.revision()
