"""Ctrl-C while Flower's Ray engine carries a run: it ends as one in this process does, and nothing is left at work.

A terminal sends the signal to the whole group, Ray's processes among them.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fedpeft.cli import HELD_S
from fedpeft.testing.models import save_tiny, tiny_bert
from fedpeft_server.run.run_view import read_run

Start = Callable[..., subprocess.Popen[str]]
A_WHILE_S = 240


def after_a_round(folder: Path, process: subprocess.Popen[str]) -> Path:
    """The run's directory, once it has committed a round."""
    end = time.monotonic() + A_WHILE_S
    while time.monotonic() < end:
        for rows in folder.glob("*/metrics.jsonl"):
            if rows.stat().st_size:
                return rows.parent
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it never came so far")


@pytest.mark.slow
@pytest.mark.timeout(2 * A_WHILE_S)
@pytest.mark.parametrize("presses", [1, 2, 5])
def test_ctrl_c_on_ray_ends_with_130_and_the_resume_command_and_leaves_nothing_at_work(
    presses: int, scenario: Path, start: Start, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    save_tiny(tiny_bert(layers=1), tmp_path / "tiny")
    options = (
        "--model",
        str(tmp_path / "tiny"),
        "--rounds",
        "200",
        "--set",
        "performance.workers=1",
        "--engine",
        "ray",
    )
    process = start("simulate", "run.toml", *options, "--out", tmp_path / "runs", as_a_job=True)
    try:
        run = after_a_round(tmp_path / "runs", process)
        others = psutil.Process(process.pid).children(recursive=True)
        assert any(other.name().startswith("ray::ClientApp") for other in others)
        for press in range(presses):
            time.sleep(1.2 * HELD_S * (press > 0))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        text, errors = process.communicate(timeout=A_WHILE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    assert process.returncode == 130, text + errors
    assert "Traceback" not in text + errors
    assert f"fedpeft simulate --resume {run}" in text.splitlines()[-1]
    assert errors.splitlines()[-1] == "interrupted"
    view = read_run(run)
    assert view.summary is not None
    assert view.summary.outcome == "interrupted"
    left = [str(path) for path in (run / "devices").glob("*/**/*")]
    assert not left  # their keys and inputs die with the run
    _, alive = psutil.wait_procs(others, timeout=30)
    assert not alive
