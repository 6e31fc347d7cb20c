"""What the trust work costs: a secure sum as it is beside that of the last commit before it (222e0cd), in alternation.

    python benchmarks/secagg_before.py [--quick] [--devices 100] [--parameters 1000000] [--thousand]

Needs the repository's history: the older tree is taken from git into a temporary folder. Each measurement is a process
of its own, the two trees take turns; medians of CPU seconds of the thread at work (as in secagg.py). ``--thousand``
measures one thing only: the mask stage of five devices among 1,000 members. The last line is JSON, kept without
``--quick`` in benchmarks/results/secagg_before.json: client and coordinator as ratios, now over then.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "secagg_before.json"
BEFORE = "222e0cd"

ROUND = """
import json, sys
from secagg import measure
cost = measure(int(sys.argv[1]), int(sys.argv[2]))
print(json.dumps({"client": cost.client_s, "coordinator": cost.coordinator_s,
                  "client_stages": cost.client_stages_s, "coordinator_stages": cost.coordinator_stages_s}))
"""
MASKING = """
import json, sys, time
from statistics import median
import numpy as np
import secagg
from secagg import *
import fedpeft.secagg as package
devices, parameters = int(sys.argv[1]), int(sys.argv[2])
spec, coordinator, keys = secagg.make_round(devices, parameters, 32, Mode.FULL)
policy = DevicePolicy(coordinator_key=coordinator.public)
def session(i, key):
    new = {"enrolled": package.Enrolled(device=f"d{i}", organisation=f"o{i}")} if hasattr(package, "Enrolled") else {}
    return DeviceSession(ledger=MemoryLedger(repeats=False), identity=key, policy=policy, **new)
sessions = {i: session(i, key) for i, key in enumerate(keys, 1)}
vector = np.zeros(parameters, np.float32)
values = {BlockId("adapter"): vector, BlockId("metrics"): np.array([100, 90, 80, 12.5], np.float32)}
owns = frozenset(values)
state = open_round(spec, identity=coordinator, entropy=os_entropy)
for _ in range(2):
    for member, request in state.requests.items():
        if isinstance(request, RoundOffer):
            reply = sessions[member].begin(request, owns=owns, entropy=os_entropy)
        else:
            reply = sessions[member].answer("benchmark", request, inputs=lambda: values, rounding=os_entropy)
        state = receive(state, member, reply)
    state = close_stage(state)
seconds = []
for member in sorted(state.requests)[::devices // 5]:
    start = time.thread_time()
    sessions[member].answer("benchmark", state.requests[member], inputs=lambda: values, rounding=os_entropy)
    seconds.append(time.thread_time() - start)
print(json.dumps({"mask": median(seconds), "degree": state.progress.members.roster.degree.neighbours}))
"""


def main() -> None:
    """Alternate, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--thousand", action="store_true")
    arguments = parser.parse_args()
    devices, parameters = (1000 if arguments.thousand else arguments.devices), arguments.parameters
    if arguments.quick:
        devices, parameters = 24, 100_000
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", BEFORE, "fedpeft", "benchmarks"], cwd=ROOT, capture_output=True, check=True
        )
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        trees = {"before": Path(folder), "now": ROOT}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for _ in range(1 if arguments.thousand or arguments.quick else arguments.repeats):
            for name, tree in trees.items():
                found[name].append(_in(tree, MASKING if arguments.thousand else ROUND, devices, parameters))
                print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    key = f"{devices}/{parameters}" + ("/mask" if arguments.thousand else "")
    result = {"before": BEFORE, "load": os.getloadavg(), **_compared(found), "runs": found}
    if not arguments.quick:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | {key: result}, indent=1) + "\n")
    print(json.dumps({key: {name: value for name, value in result.items() if name != "runs"}}))


def _in(tree: Path, program: str, devices: int, parameters: int) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'benchmarks'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(devices), str(parameters)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians now over medians before."""
    if "mask" in found["now"][0]:
        return {"mask": found["now"][0]["mask"] / found["before"][0]["mask"]}

    def middle(name: str, *parts: str) -> float:
        return median(sum(run[part] for part in parts) for run in found[name])

    return {
        "client": middle("now", "client") / middle("before", "client"),
        "coordinator": middle("now", "coordinator") / middle("before", "coordinator"),
    }


if __name__ == "__main__":
    main()
