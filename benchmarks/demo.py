"""The airline demo, measured: accuracy against both baselines, overhead, memory, time; one process a seed.

    python benchmarks/demo.py            three seeds, as `make demo` runs it (about 7 minutes a seed)
    python benchmarks/demo.py --quick    one seed, two short rounds, no baselines worth reading

Overhead is what is not a client's own training and evaluation: messages, secure aggregation, aggregation,
commits, exports. It is measured in CPU seconds (process CPU minus the CPU of the threads inside
``TorchTrainer.fit``) and as wall time in which no client was inside ``fit``.

The first seed runs once more without secure aggregation: the same accuracy, and what it costs.

Ends with one JSON object on its last line; everything is kept in benchmarks/results/demo.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCENARIO = ROOT / "simulations" / "scenarios" / "airlines.toml"
QUICK = ["rounds.count=2", "train.local_steps=2", "rounds.eval_examples=16"]
KEYS = ("alone_mean", "federated", "centralised", "gap_closed", "overhead_fraction", "peak_rss_mb")


class Meter:
    """Time and CPU inside ``TorchTrainer.fit``, over all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cpu_s = 0.0
        self.busy_s = 0.0
        self._inside = 0
        self._since = 0.0

    def wrap(self, fit):
        """``fit``, metered."""

        def metered(*args, **kwargs):
            with self.lock:
                if self._inside == 0:
                    self._since = time.monotonic()
                self._inside += 1
            begun = time.thread_time()
            try:
                return fit(*args, **kwargs)
            finally:
                used = time.thread_time() - begun
                with self.lock:
                    self.cpu_s += used
                    self._inside -= 1
                    if self._inside == 0:
                        self.busy_s += time.monotonic() - self._since

        return metered


def one_seed(seed: int, quick: bool, overrides: list[str], baselines: bool) -> dict[str, object]:
    """Run in this process; called in a child. Without baselines only the federation's own figures."""
    from fedpeft.config import load
    from fedpeft_client.training.trainer import TorchTrainer
    from fedpeft_sim import simulate as simulation_module
    from fedpeft_sim.simulate import prepare, simulate

    class Quiet:
        def observe(self, event) -> None:
            if event.kind.value == "committed":
                print(f"  seed {seed} round {event.round_id}: {event.detail}", flush=True)

        def note(self, text: str) -> None:
            print(f"  {text}", flush=True)

        def hint(self, text: str) -> None:
            self.note(text)

        def working(self, what: str, done: int, total: int) -> None:
            pass

    meter = Meter()
    TorchTrainer.fit = meter.wrap(TorchTrainer.fit)
    federation: dict[str, float] = {}
    inner = simulation_module._federate

    def timed(*args):
        wall, cpu = time.monotonic(), time.process_time()
        try:
            return inner(*args)
        finally:
            federation["wall_s"] = time.monotonic() - wall
            federation["cpu_s"] = time.process_time() - cpu

    simulation_module._federate = timed
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"run.seed={seed}", *(QUICK if quick else []), *overrides]
        config = load(SCENARIO, overrides=changes, simulation=True)
        config = config.model_copy(update={"directory": Path(folder)})
        started = time.monotonic()
        prepared = prepare(config, Quiet())
        begun = time.monotonic()
        run = simulate(prepared, Quiet(), source=SCENARIO.read_text(), command=sys.argv, baselines=baselines)
        finished = time.monotonic()
        summary = json.loads((run / "summary.json").read_text())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows_all = {row["client"]: row for row in summary["comparison"]}
    total = rows_all["all"]
    compared = {}
    if baselines:
        gap = (total["federated"] - total["alone"]) / (total["centralised"] - total["alone"])
        compared = {"alone_mean": total["alone"], "centralised": total["centralised"], "gap_closed": gap}
    return {
        "seed": seed,
        "federated": total["federated"],
        **compared,
        "clients": {name: row for name, row in rows_all.items() if name != "all"},
        "overhead_fraction": 1 - meter.cpu_s / federation["cpu_s"],
        "overhead_wall_fraction": 1 - meter.busy_s / federation["wall_s"],
        "federation_wall_s": federation["wall_s"],
        "federation_cpu_s": federation["cpu_s"],
        "prepare_s": begun - started,
        "first_round_s": rows[0]["seconds"],
        "total_s": finished - started,
        "bytes_up": summary["bytes_up"],
        "bytes_down": summary["bytes_down"],
        "bytes_full_parameters": summary["bytes_full_parameters"],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_child(seed: int, options: list[str]) -> dict[str, Any]:
    """One seed in a process of its own; its figures."""
    print(f"seed {seed}", flush=True)
    command = [sys.executable, __file__, "--child", str(seed), *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    last = ""
    for line in child.stdout or ():
        last = line
        if not line.startswith("{"):
            print(line, end="", flush=True)
    if child.wait() != 0:
        sys.exit(f"seed {seed} failed")
    return json.loads(last)


def main() -> None:
    """Each seed in a process of its own, so that memory and CPU are its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--child", type=int)
    parser.add_argument("--no-baselines", action="store_true")
    arguments = parser.parse_args()
    if arguments.child is not None:
        figures = one_seed(arguments.child, arguments.quick, arguments.overrides, not arguments.no_baselines)
        print(json.dumps(figures))
        return
    quick = ["--quick"] if arguments.quick else []
    given = [part for override in arguments.overrides for part in ("--set", override)]
    given += ["--no-baselines"] if arguments.no_baselines else []
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    results = [in_child(seed, [*quick, *given]) for seed in seeds]
    print("the first seed again without secure aggregation", flush=True)
    plain = in_child(seeds[0], [*quick, *given, "--no-baselines", "--set", 'secagg.mode="off"'])
    summary = {key: mean(result[key] for result in results) for key in KEYS if key in results[0]}
    summary |= {
        "secagg_accuracy_difference": results[0]["federated"] - plain["federated"],
        "secagg_cpu_ratio": results[0]["federation_cpu_s"] / plain["federation_cpu_s"],
        "secagg_wall_ratio": results[0]["federation_wall_s"] / plain["federation_wall_s"],
    }
    summary |= {"seeds": results, "without_secagg": plain, "quick": arguments.quick}
    if not (arguments.quick or arguments.overrides or arguments.no_baselines):  # the kept results are the demo's own
        target = ROOT / "benchmarks" / "results" / "demo.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
