"""The registry as the running coordinator sees it: who is behind a key or a node, now.

The registry is changed by other processes too (`clients revoke`); its revision is looked at with every question, so a
change holds from the next request on. Flower is kept in step: active devices have a node, ended ones have none.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from fedpeft.clock import Clock
from fedpeft.ids import NodeId
from fedpeft.round.transport import Transport
from fedpeft_server.enrolment.certificate_authority import certificate_expiry
from fedpeft_server.enrolment.groups import Groups
from fedpeft_server.enrolment.registry import ENDED, EnrolledDevice, Registry, Status

__all__ = ["ActiveDevices", "Standing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What enrolment knows of a key.

    Args:
        device: its name.
        revoked: why it may not take part any more; empty while it may.
    """

    device: str
    revoked: str = ""


class ActiveDevices:
    """Thread-safe.

    Args:
        registry: who was enrolled.
        enrol: node key (PEM) and name -> Flower's node.
        expel: node key -> nothing; Flower refuses it from now on.
        clock: a device whose certificate has ended by it takes no part.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        enrol: Callable[[bytes, str], NodeId],
        expel: Callable[[bytes], None],
        clock: Clock,
    ) -> None:
        self._registry, self._enrol, self._expel, self._clock = registry, enrol, expel, clock
        self._lock = threading.Lock()
        self._revision = -1
        self._by_key: dict[bytes, EnrolledDevice] = {}
        self._by_node: dict[NodeId, EnrolledDevice] = {}
        self._groups: Mapping[bytes, Set[str]] = {}

    def standing(self, node_key: bytes) -> Standing | None:
        """What the gateway asks."""
        with self._lock:
            self._refresh()
            device = self._by_key.get(node_key)
        if device is None or device.status is Status.PENDING:
            return None
        if device.status in ENDED:
            was = "" if device.status is Status.LEFT else "was "
            how = device.reason or f"{device.status.value} at {device.since[:19]} (UTC)"
            return Standing(device=device.name, revoked=f"{device.name} {was}{how}")
        if (ended := self._ended(device)) is not None:
            text = (
                f"the certificate of {device.name} ended on {ended:%Y-%m-%d %H:%M} (UTC); ask for a token, join again"
            )
            return Standing(device=device.name, revoked=text)
        return Standing(device=device.name)

    def status(self, device: EnrolledDevice) -> str:
        """Its status in a word; ``expired`` when only its certificate keeps it out."""
        expired = device.status is Status.ACTIVE and self._ended(device) is not None
        return "expired" if expired else device.status.value

    def _ended(self, device: EnrolledDevice) -> datetime | None:
        """When its certificate ended; None while it is good."""
        if not device.certificate:
            return None
        end = certificate_expiry(device.certificate)
        return end if end <= self._clock.utc() else None

    def device(self, node: NodeId) -> EnrolledDevice | None:
        """The active device behind a node; None for any other."""
        with self._lock:
            self._refresh()
            found = self._by_node.get(node)
        return None if found is None or self._ended(found) is not None else found

    def present(self, transport: Transport) -> Sequence[EnrolledDevice]:
        """The active devices that can be reached now, by name."""
        found = (self.device(node) for node in transport.nodes())
        return sorted((device for device in found if device is not None), key=lambda device: device.name)

    def nodes(self, group: str = "", without: Collection[str] = ()) -> Set[NodeId]:
        """The active devices of a group, or all of them, but for those of these names; reachable or not."""
        with self._lock:
            self._refresh()
            devices, groups = self._by_node.items(), self._groups
        return {
            node
            for node, device in devices
            if self._ended(device) is None
            and device.name not in without
            and (not group or group in groups.get(device.identity, ()))
        }

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
        self._by_key, self._by_node, self._groups = keys, nodes, Groups(self._registry).all()
        self._revision = self._registry.revision()
