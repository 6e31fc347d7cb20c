"""A device without room on its disk: the others go on, its owner reads why, and it is back once there is room.

A full disk on one device ended the run within 8 s, and nobody was told why.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import ToyFederation

pytestmark = pytest.mark.e2e


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "ward-d"
    path.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_device_whose_disk_is_full_is_left_out_and_its_owner_reads_why(small_disk: Path, tmp_path: Path) -> None:
    federation = ToyFederation(tmp_path)
    try:
        federation.up()
        federation.admit(["ward-a", "ward-b", "ward-c", "ward-d"])
        assert federation.finished(federation.submit(rounds=1)).state.value == "finished"
        filler = small_disk / "filler"
        fill(filler)
        job = federation.finished(federation.submit(rounds=2), within_s=150)
        assert job.state.value == "finished", job.reason
        assert federation.rows(job)[0]["devices_survived"] == 3
        assert "No space left" in federation.log("ward-d")
        assert federation.processes["ward-d"].poll() is None
        filler.unlink()
        after = federation.finished(federation.submit(rounds=1), within_s=150)
        assert federation.rows(after)[0]["devices_survived"] == 4
        for line in federation.log("ward-d").splitlines():
            assert json.loads(line)["level"]
    finally:
        federation.close()
