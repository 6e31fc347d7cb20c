"""A process that is killed by the system after each of its durable writes, devices on real files, and its next life.

What is killed is the coordinator and all of its devices at once, by SIGKILL from inside the write: nothing is flushed,
closed or caught. The next process finds what is on the disk.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from forked import start_toy

pytestmark = pytest.mark.e2e
LIFE = Path(__file__).parent / "toy" / "one_life.py"


def live(where: Path, fatal: int) -> tuple[int, list[dict[str, object]]]:
    """One process; its exit code, and every sum that this and the lives before it saw."""
    path = os.pathsep.join([str(LIFE.parent), *(entry for entry in sys.path if entry)])
    process = start_toy(LIFE, where, fatal, environment={**os.environ, "PYTHONPATH": path}, log=where / "log.txt")
    status = process.wait(120)
    assert status in (0, -signal.SIGKILL), (where / "log.txt").read_text()
    seen = where / "sums.jsonl"
    lines = seen.read_text().splitlines() if seen.exists() else []
    return status, [json.loads(line) for line in lines]


@pytest.mark.parametrize("fatal", range(1, 24, 2))
def test_killed_by_the_system_it_opens_one_sum_a_round(tmp_path: Path, fatal: int) -> None:
    code, _ = live(tmp_path, fatal)
    assert code == -signal.SIGKILL
    code, seen = live(tmp_path, 0)
    assert code == 0
    for round_id in (1, 2):
        sums = {json.dumps([one["survivors"], one["values"]]) for one in seen if one["round"] == round_id}
        assert len(sums) == 1, f"round {round_id} was opened {len(sums)} times"
