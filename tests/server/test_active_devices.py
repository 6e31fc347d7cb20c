"""The registry as the running coordinator sees it."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.clock import SystemClock
from fedpeft.ids import NodeId
from fedpeft_server.enrolment.active_devices import ActiveDevices
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, Status

WARD = EnrolledDevice(
    name="ward-a",
    organisation="clinic",
    status=Status.ACTIVE,
    identity=b"i" * 32,
    node_key=b"key a",
    csr=b"",
    serial=None,
    certificate=b"",
    profile="",
    code="",
    token_id="",
    reason="",
    node_id=None,
    since="2026-11-22",
)


class Flower:
    """What Flower would know."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, NodeId] = {}
        self.expelled: list[bytes] = []

    def enrol(self, key: bytes, name: str) -> NodeId:
        return self.nodes.setdefault(key, NodeId(100 + len(self.nodes)))

    def expel(self, key: bytes) -> None:
        self.expelled.append(key)


@pytest.fixture
def flower() -> Flower:
    return Flower()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.sqlite")


@pytest.fixture
def members(registry: Registry, flower: Flower) -> ActiveDevices:
    return ActiveDevices(registry, enrol=flower.enrol, expel=flower.expel, clock=SystemClock())


def test_an_active_device_gets_a_node_and_the_registry_learns_it(
    registry: Registry, members: ActiveDevices, flower: Flower
) -> None:
    registry.put(WARD)
    standing = members.standing(b"key a")
    assert standing is not None
    assert (standing.device, standing.revoked) == ("ward-a", "")
    assert registry.device("ward-a").node_id == NodeId(100)
    found = members.device(NodeId(100))
    assert found is not None
    assert found.name == "ward-a"


@pytest.mark.parametrize("status", [Status.REVOKED, Status.LEFT, Status.DENIED])
def test_an_ended_device_is_told_so_and_flower_expels_it(
    tmp_path: Path, registry: Registry, members: ActiveDevices, flower: Flower, status: Status
) -> None:
    registry.put(WARD)
    assert members.standing(b"key a") is not None
    other_process = Registry(tmp_path / "registry.sqlite")
    other_process.put(replace(WARD, status=status, reason="laptop stolen"))
    standing = members.standing(b"key a")
    assert standing is not None
    assert "laptop stolen" in standing.revoked
    assert members.device(NodeId(100)) is None
    assert b"key a" in flower.expelled


def test_strangers_and_pending_devices_have_no_standing(registry: Registry, members: ActiveDevices) -> None:
    registry.put(replace(WARD, status=Status.PENDING))
    assert members.standing(b"key a") is None
    assert members.standing(b"nobody's") is None


def test_a_rotated_key_replaces_the_old_one(registry: Registry, members: ActiveDevices, flower: Flower) -> None:
    registry.put(WARD)
    members.refresh()
    registry.put(replace(WARD, node_key=b"key b", node_id=None))
    assert members.standing(b"key a") is None
    assert members.standing(b"key b") is not None
    assert flower.expelled == [b"key a"]
    assert registry.device("ward-a").node_id == flower.nodes[b"key b"]


def test_a_run_without_a_device_has_every_other_node(registry: Registry, members: ActiveDevices) -> None:
    registry.put(WARD)
    registry.put(replace(WARD, name="ward-b", identity=b"j" * 32, node_key=b"key b"))
    assert members.nodes() == {NodeId(100), NodeId(101)}
    assert members.nodes("", ("ward-a",)) == {NodeId(101)}
    assert members.nodes("", ("ward",)) == {NodeId(100), NodeId(101)}
