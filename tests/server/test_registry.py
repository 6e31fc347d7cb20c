"""The registry: what several processes agree on about who takes part."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.errors import IntegrityFailed, NotEnrolled
from fedpeft.ids import NodeId
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, Status

WARD = EnrolledDevice(
    name="ward-a",
    organisation="clinic",
    status=Status.ACTIVE,
    identity=b"i" * 32,
    node_key=b"node key",
    csr=b"csr",
    serial="0a",
    certificate=b"pem",
    profile="{}",
    code="4F2K-9034",
    token_id="t1",
    reason="",
    node_id=NodeId(2**63 + 5),
    since="2026-11-22T12:00:00+00:00",
)


def test_what_one_process_writes_another_reads_and_the_revision_grows(tmp_path: Path):
    writer, reader = Registry(tmp_path / "registry.sqlite"), Registry(tmp_path / "registry.sqlite")
    before = reader.revision()
    writer.put(WARD)
    assert reader.device("ward-a") == WARD
    assert reader.revision() > before
    assert reader.by_node_key(b"node key") == WARD
    assert reader.by_node_key(b"another key") is None
    assert (tmp_path / "registry.sqlite").stat().st_mode & 0o777 == 0o600


def test_devices_are_listed_by_status(tmp_path: Path):
    registry = Registry(tmp_path / "r")
    registry.put(WARD)
    other = replace(WARD, name="a", identity=b"j" * 32, node_key=b"k", serial=None, node_id=None, status=Status.PENDING)
    registry.put(other)
    assert [device.name for device in registry.devices()] == ["a", "ward-a"]
    assert registry.devices(Status.PENDING) == (other,)


def test_keys_of_a_replaced_device_are_retired(tmp_path: Path):
    registry = Registry(tmp_path / "r")
    registry.put(WARD)
    registry.put(replace(WARD, node_key=b"new", node_id=None))
    assert registry.is_retired(b"node key")
    assert not registry.is_retired(WARD.identity)
    assert registry.by_node_key(b"node key") is None


def test_two_devices_cannot_have_one_key_and_a_failed_change_leaves_nothing(tmp_path: Path):
    registry = Registry(tmp_path / "r")
    registry.put(WARD)
    revision = registry.revision()
    with pytest.raises(Exception, match="UNIQUE"):
        registry.put(replace(WARD, name="other", identity=b"x" * 32, serial=None, node_id=None))
    assert registry.revision() == revision
    assert [device.name for device in registry.devices()] == ["ward-a"]


def test_what_flower_calls_a_device_can_be_noted_and_forgotten(tmp_path: Path):
    registry = Registry(tmp_path / "r")
    registry.put(WARD)
    registry.set_node("ward-a", None)
    assert registry.device("ward-a").node_id is None
    with pytest.raises(NotEnrolled, match="nobody"):
        registry.device("nobody")


def test_a_damaged_file_is_refused(tmp_path: Path):
    (tmp_path / "r").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    with pytest.raises(IntegrityFailed, match="backup"):
        Registry(tmp_path / "r")
