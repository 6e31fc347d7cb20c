"""A device's memory: what was written is there, whole, and nobody else's to read."""

import stat
from pathlib import Path

import pytest

from fedpeft_client.training.device_stores import FileStore, MemoryStore


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_store_gives_back_what_was_written_last(kind: str, tmp_path: Path) -> None:
    store = MemoryStore() if kind == "memory" else FileStore(tmp_path / "device")
    assert store.read("held") is None
    store.write("held", b"one")
    store.write("open", b"")
    store.write("held", b"two")
    assert (store.read("held"), store.read("open")) == (b"two", b"")


def test_a_file_store_outlives_the_process(tmp_path: Path) -> None:
    FileStore(tmp_path).write("held", b"kept")
    assert FileStore(tmp_path).read("held") == b"kept"


def test_a_file_store_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "device")
    store.write("held", b"x")
    assert stat.S_IMODE((tmp_path / "device").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "device" / "held").stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_value_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    store.write("held", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        store.write("held", b"new")
    monkeypatch.undo()
    assert store.read("held") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["held"]
