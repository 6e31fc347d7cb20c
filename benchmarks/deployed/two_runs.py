"""Two runs at once over the same devices, beside each of them alone.

    python benchmarks/deployed/two_runs.py             eight devices, about two minutes
    python benchmarks/deployed/two_runs.py --quick     four devices

Real processes and the real protocol as in `deployment.py`; training takes no time. ``two_runs_ratio`` is the seconds
from the submission of both to the end of the later one, divided by the seconds of both alone, one after the other.
One JSON object on the last line of stdout.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e" / "toy")]


def two_runs(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The ratio, and what it was computed from."""
    devices, rounds = (4, 6) if quick else (8, 40)
    names = [f"ward-{number}" for number in range(devices)]
    os.environ["TOY_DEVICES"] = ",".join(names)
    from federation import ToyFederation

    federation = ToyFederation(folder)
    try:
        federation.up()
        federation.admit(names)
        federation.finished(federation.submit(rounds=2, least=devices))  # every device has loaded what it needs
        alone = [seconds(federation, 1, rounds, devices) for _ in range(2)]
        together = seconds(federation, 2, rounds, devices)
    finally:
        federation.close()
    return {
        "two_runs_ratio": together / sum(alone),
        "two_runs_s": together,
        "two_runs_alone_s": alone,
        "two_runs_devices": devices,
        "two_runs_rounds": rounds,
    }


def seconds(federation, runs: int, rounds: int, devices: int) -> float:
    """From the submission of so many runs to the end of the last."""
    begun = time.monotonic()
    jobs = [federation.submit(rounds=rounds, least=devices) for _ in range(runs)]
    for job in jobs:
        ended = federation.finished(job, within_s=60.0 + 10 * rounds * runs)
        if ended.state.value != "finished":
            raise SystemExit(f"the run ended {ended.state.value}: {ended.reason}")
    return time.monotonic() - begun


def main() -> None:
    """Prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(two_runs(Path(folder), quick=parser.parse_args().quick)))


if __name__ == "__main__":
    main()
