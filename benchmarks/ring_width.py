"""Two bytes a parameter instead of four: does the narrower ring of the secure sum cost accuracy?

    python benchmarks/ring_width.py            three seeds of the airlines, 24 rounds: about an hour
    python benchmarks/ring_width.py --quick    one seed, eight rounds
    python benchmarks/ring_width.py --seeds 2  so many seeds

Each seed is trained in a ring of 32 and of 16 bits, with the ranges that follow from the learning rates
(``secagg.max_abs`` = "auto"), and in one of 16 bits with the range of 4 that runs had before: with six devices a step
of the ring is 7e-4 there, as large as an update's coordinates. The last line is JSON: ``accuracy`` (mean over the
seeds, by ring), ``loss_16_bits`` (with the ranges of the rates, against 32 bits, in points), ``bytes_up`` and
``state_step``: the largest root mean square by which any block of the state moved in one round, in units of its
learning rate times local steps. Kept, without ``--quick``, in benchmarks/results/ring_width.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

SCENARIO = Path(__file__).resolve().parents[1] / "simulations" / "scenarios" / "airlines.toml"
RESULTS = Path(__file__).parent / "results" / "ring_width.json"
RINGS = {
    "32 bits": ("secagg.bits=32",),
    "16 bits": ("secagg.bits=16",),
    "16 bits, range 4": ("secagg.bits=16", "secagg.max_abs=4.0"),
}


def main() -> None:
    """Train each seed in each ring, every time in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(one_run(json.loads(arguments.child))))
        return
    seeds = (0,) if arguments.quick else tuple(range(arguments.seeds))
    short = ("rounds.count=8",) if arguments.quick else ()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RINGS}
    for seed in seeds:
        for name, overrides in RINGS.items():
            runs[name].append(_in_child([f"run.seed={seed}", *short, *overrides]))
            print(seed, name, json.dumps(runs[name][-1]), flush=True)
    accuracy = {name: mean(run["accuracy"] for run in found) for name, found in runs.items()}
    result = {
        "accuracy": accuracy,
        "loss_16_bits": 100 * (accuracy["32 bits"] - accuracy["16 bits"]),
        "bytes_up": {name: mean(run["bytes_up"] for run in found) for name, found in runs.items()},
        "state_step": max(run["state_step"] for found in runs.values() for run in found),
        "seeds": len(seeds),
        "runs": runs,
    }
    if not arguments.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _in_child(overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(overrides)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_run(overrides: list[str]) -> dict[str, Any]:
    """One simulation; in a child."""
    from fedpeft.config import load
    from fedpeft.round.rates import learning_rates
    from fedpeft_client.training.trainer import TorchTrainer
    from fedpeft_sim.simulate import prepare, simulate

    class Quiet:
        def observe(self, event: object) -> None:
            pass

        def note(self, text: str) -> None:
            pass

        def working(self, what: str, done: int, total: int) -> None:
            pass

    steps: list[float] = []
    last: dict[str, Any] = {}
    fit = TorchTrainer.fit

    def watched(self: TorchTrainer, plan: Any, state: Any, request: Any, *more: Any) -> Any:
        now = {block.block_id: state[block.block_id] for block in state.spec.blocks}
        known = last.get("state")
        if known is not None and last["at"] < request.first_step:
            rates = learning_rates(plan, state.spec, frozenset(now))
            moved = request.first_step - last["at"]
            steps.extend(
                float(np.sqrt(np.mean(np.square(now[block] - known[block])))) / (rate * moved)
                for block, rate in rates.items()
            )
        last.update(state=now, at=request.first_step)
        return fit(self, plan, state, request, *more)

    TorchTrainer.fit = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        config = load(SCENARIO, overrides=overrides, simulation=True)
        config = config.model_copy(update={"directory": Path(folder)})
        run = simulate(
            prepare(config, Quiet()), Quiet(), source=SCENARIO.read_text(), command=sys.argv, baselines=False
        )
        summary = json.loads((run / "summary.json").read_text())
    total = next(row for row in summary["comparison"] if row["client"] == "all")
    return {"accuracy": total["federated"], "bytes_up": summary["bytes_up"], "state_step": max(steps, default=0.0)}


if __name__ == "__main__":
    main()
