"""Two bytes a parameter instead of four: does the narrower ring of the secure sum cost accuracy, and what is cut?

    python benchmarks/ring_width.py                       three seeds of the airlines, 24 rounds: about an hour
    python benchmarks/ring_width.py --rounds 8 --seeds 3  shorter runs; kept apart from longer ones
    python benchmarks/ring_width.py --language-model      the docstrings by SmolLM2 (`make base-smollm`), 4 rounds
    python benchmarks/ring_width.py --quick               one seed, eight rounds; nothing is kept

Each seed is trained in a ring of 32 and of 16 bits, with the ranges that follow from the learning rates
(``secagg.max_abs`` = "auto"). Each run is kept in benchmarks/results/ring_width.json as it ends, and a later call goes
on from there. The last line is JSON: ``accuracy`` (mean over the seeds, by ring; of a language model ``loss``),
``loss_16_bits`` (what the narrow ring loses, in points or nats, with ``paired_error``, the standard error over the
seeds), ``bytes_up``, ``cut`` (coordinates that ranges cut off, over all devices and rounds: what the devices' own logs
say) and ``state_step``: the largest root mean square by which any block of the state moved in one round, in units of
its learning rate times local steps.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

SCENARIOS = Path(__file__).resolve().parents[1] / "simulations" / "scenarios"
RESULTS = Path(__file__).parent / "results" / "ring_width.json"
RINGS = {
    "32 bits": ("secagg.bits=32",),
    "16 bits": ("secagg.bits=16",),
}
UNITS = {"accuracy": 100.0, "loss": -1.0}
"""How a score counts: accuracy in points, a loss in nats, where less is better."""
CUT = re.compile(r": (\d+) of \d+ coordinates were beyond")


def main() -> None:
    """Train each seed in each ring, every time in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--language-model", action="store_true")
    parser.add_argument("--base", help="of the language model: an artifact's digest, if it is built already")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(one_run(*arguments.child)))
        return
    scenario, rounds = ("smollm", 4) if arguments.language_model else ("airlines", 8 if arguments.quick else 24)
    rounds = arguments.rounds or rounds
    base = [f"base.model={arguments.base}"] if arguments.base else []
    title = f"{rounds} rounds" if scenario == "airlines" else f"{scenario}, {rounds} rounds"
    everything = json.loads(RESULTS.read_text()) if RESULTS.exists() and not arguments.quick else {}
    kept: dict[str, dict[str, Any]] = everything.setdefault(title, {}).setdefault("runs", {})
    for seed in range(1 if arguments.quick else arguments.seeds):
        for name, overrides in RINGS.items():
            key = f"seed {seed}, {name}"
            if key not in kept:
                kept[key] = _in_child(scenario, [f"run.seed={seed}", f"rounds.count={rounds}", *base, *overrides])
                print(key, json.dumps(kept[key]), flush=True)
            everything[title] = {**_summary(kept), "runs": kept}
            if not arguments.quick:
                RESULTS.write_text(json.dumps(everything, indent=1) + "\n")
    print(json.dumps(_summary(kept)))


def _summary(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    by_ring = {name: [run for key, run in kept.items() if key.endswith(name)] for name in RINGS}
    pairs = zip(by_ring["32 bits"], by_ring["16 bits"], strict=False)
    score = next((name for run in kept.values() for name in run if name in UNITS), "accuracy")
    apart = [UNITS[score] * (wide[score] - narrow[score]) for wide, narrow in pairs]
    return {
        "seeds": len(apart),
        score: {name: mean(run[score] for run in found) for name, found in by_ring.items() if found},
        "loss_16_bits": mean(apart) if apart else None,
        "paired_error": stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None,
        "bytes_up": {name: mean(run["bytes_up"] for run in found) for name, found in by_ring.items() if found},
        "cut": sum(run["cut"] for run in kept.values()),
        "state_step": max(run["state_step"] for run in kept.values()),
    }


def _in_child(scenario: str, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", scenario, *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_run(scenario: str, *overrides: str) -> dict[str, Any]:
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

        def hint(self, text: str) -> None:
            self.note(text)

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
        source = SCENARIOS / f"{scenario}.toml"
        config = load(source, overrides=overrides, simulation=True)
        config = config.model_copy(update={"directory": Path(folder)})
        run = simulate(prepare(config, Quiet()), Quiet(), source=source.read_text(), command=sys.argv, baselines=False)
        summary = json.loads((run / "summary.json").read_text())
        logs = "".join(path.read_text() for path in run.rglob("*.jsonl") if path.parent.name == "troubles")
    total = next(row for row in summary["comparison"] if row["client"] == "all")
    return {
        summary["metric"]: total["federated"],
        "bytes_up": summary["bytes_up"],
        "state_step": max(steps, default=0.0),
        "cut": sum(map(int, CUT.findall(logs))),
    }


if __name__ == "__main__":
    main()
