"""Two findings of the papers in small, on BANKING77 (77 intents, 10,003 + 3,080 queries) with MiniLM-L6.

    python benchmarks/banking77.py

- Houlsby et al. 2019: bottleneck adapters with their layer norms reach full fine-tuning's accuracy with under 4 % of
  the parameters.
- Hu et al. 2021, section 7.2: LoRA (q, v; both factors trained) at ranks 1, 2, 4, 8, 64, and what share of one rank's
  leading directions lies in another's (``docs/lora-subspaces.svg``): those of A, as in the paper, and those of B A's
  outputs, which begin with no one's random draw.

The ranks are compared with each other after 250 steps, less than one pass over the data, where none has converged.
Each method is trained once, its rate falling linearly to zero over all steps (adapters: over ten rounds, as
``train.decay = "linear"``). The rates are customary ones, fixed beforehand: nothing was tuned on the test side. One
process a training, resumable: what is in benchmarks/results/banking77.json is not measured again. The trained factors
lie in ~/.cache/fedpeft/banking77. The last line is JSON: ``accuracy``, ``adapter_minus_full``, ``adapter_share``,
``rank_accuracy``; of each picture how much of the first direction lies in the other's first (``first_direction``), of
eight in eight, and of eight in all 64, and the same of random directions.
"""

import argparse
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import torch
from one_method.common import Settings, built, data_of, full_training, loaded, scored
from one_method.subspace_picture import drawn, overlaps

from fedpeft.config.model import Adapter
from fedpeft.methods import UnionAdapter, attach, due_blocks
from fedpeft.methods.lora import LoraPart
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import train

RESULTS = Path(__file__).parent / "results" / "banking77.json"
PICTURE = Path(__file__).parents[1] / "docs" / "lora-subspaces.svg"
FACTORS = Path.home() / ".cache" / "fedpeft" / "banking77"
RANKS = (1, 2, 4, 8, 64)
AGAIN = "lora r64 again"
FULL_RATE, ADAPTER_RATE = 2e-4, 2e-3
STEPS, LORA_STEPS, PIECES = 600, 250, 10
LAYER, WIDTH = 3, 384
CAPTION = (
    "phi(i, j): what share of the first i directions of one adapter (down) lies in the first j of another (across); "
    f"MiniLM, BANKING77, layer {LAYER}"
)


def main() -> None:
    """Measure what is not known yet, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", metavar="JSON", help="One training in this process.")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(json.loads(asked.one))))
        return
    known: dict[str, Settings] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    for name in ("full", "adapter", "lora r8", "lora r64", AGAIN, "lora r1", "lora r2", "lora r4"):
        measured(known, name)
    found = summary(known)
    RESULTS.write_text(json.dumps({"summary": found, "runs": known}, indent=1) + "\n")
    for name, run in known.items():
        print(f"{name:28} accuracy {run['accuracy']:.4f}  loss {run['loss']:.4f}  {run['trained']:,} trained")
    print(json.dumps(found))


def of(name: str) -> Settings:
    """The settings of one named training. No two draw the same start: what they share later, they learnt."""
    if name == "full":
        return {"name": name, "adapter": None, "seed": 0, "steps": STEPS, "rate": FULL_RATE}
    common = {"name": name, "rate": ADAPTER_RATE}
    if name == "adapter":
        return common | {"adapter": {"bottleneck": {"width": 64}, "layernorm": {}}, "seed": 0, "steps": STEPS}
    rank = int(name.removeprefix("lora r").split()[0])
    lora = {"rank": rank, "tiers": [rank], "train": "both", "init": "gaussian"}
    return common | {"adapter": {"lora": lora}, "seed": rank + (name == AGAIN), "steps": LORA_STEPS}


def measured(known: dict[str, Settings], name: str) -> None:
    """Train in a process of its own unless it is known, and keep what came of it."""
    if name in known:
        return
    print(name, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, __file__, "--one", json.dumps(of(name))]
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    known[name] = json.loads(done.stdout.strip().splitlines()[-1])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"summary": None, "runs": known}, indent=1) + "\n")


def one(settings: Settings) -> Settings:
    """Train, score, and keep the factors of LoRA."""
    torch.set_num_threads(1)
    artifact = built("minilm", "int8")
    train_set, test_set, labels = data_of({"base": "minilm", "data": "banking77", "length": 48}, artifact)
    model = loaded(artifact, labels, "dense")
    rate, steps = float(settings["rate"]), int(settings["steps"])
    if settings["adapter"] is None:
        found = full_training(model, train_set, test_set, steps=steps, batch_size=32, rate=rate, falling=True)
        return {key: found[key] for key in ("accuracy", "loss", "trained")} | {"rate": rate, "steps": steps}
    adapter = Adapter.model_validate_json(json.dumps(settings["adapter"]))
    union, seed = attach(model, adapter, seed=int(settings["seed"])), int(settings["seed"])
    due = due_blocks(union.spec, adapter, 1)
    for piece in range(PIECES):
        plan = plan_for(due, steps=steps // PIECES, batch_size=32, rate=rate * (1 - piece / PIECES))
        train(union, train_set, plan, seed=seed, first_step=piece * plan.steps)
    keep_factors(union, str(settings["name"]))
    trained = sum(union.spec[block].size for block in due)
    return scored(union, test_set) | {"trained": trained, "rate": rate, "steps": steps}


def keep_factors(union: UnionAdapter, name: str) -> None:
    """A and B of every LoRA part, for the picture."""
    parts = {path: part for path, part in union.model.named_modules() if isinstance(part, LoraPart)}
    if parts:
        FACTORS.mkdir(parents=True, exist_ok=True)
        factors = {
            f"{path}|{side}": value.detach().numpy()
            for path, part in parts.items()
            for side, value in zip("AB", part.factors(), strict=True)
        }
        np.savez(FACTORS / f"{name.replace(' ', '-')}.npz", **typing.cast("typing.Any", factors))


def factors_of(name: str, slot: str) -> tuple[np.ndarray, np.ndarray]:
    """A (r, d_in) and B (d_out, r) of one matrix of layer ``LAYER``."""
    with np.load(FACTORS / f"{name.replace(' ', '-')}.npz") as kept:
        down, up = (
            next(kept[key] for key in kept if f".{LAYER}." in key and slot in key and key.endswith(side))
            for side in ("|A", "|B")
        )
    return down, up


def summary(known: dict[str, Settings]) -> Settings:
    """The figures, and the picture."""
    lines: list[dict[str, np.ndarray]] = []
    for slot, short in (("query", "q"), ("value", "v")):
        low, high, again = (factors_of(name, slot) for name in ("lora r8", "lora r64", AGAIN))
        lines.append(
            {
                f"{short}, A: rank 8, rank 64": overlaps(low, high, rows=8, columns=64, of="A"),
                f"{short}, outputs: rank 8, rank 64": overlaps(low, high, rows=8, columns=64, of="outputs"),
                f"{short}, outputs: rank 64, two seeds": overlaps(high, again, rows=64, columns=64, of="outputs"),
            }
        )
    PICTURE.write_text(drawn(lines, caption=CAPTION), encoding="utf-8")
    grids = {title: grid for line in lines for title, grid in line.items()}
    shares = {"first_direction": (0, 0), "eight_directions": (7, 7), "eight_in_64": (7, 63)}
    total = known["full"]["trained"]
    return {
        "accuracy": {name: round(known[name]["accuracy"], 4) for name in ("full", "adapter")},
        "adapter_minus_full": round(known["adapter"]["accuracy"] - known["full"]["accuracy"], 4),
        "adapter_share": round(known["adapter"]["trained"] / total, 4),
        "rank_accuracy": {
            f"r{rank}": round(known[f"lora r{rank}"]["accuracy"], 4) for rank in RANKS if f"lora r{rank}" in known
        },
        **{key: {name: round(float(grid[at]), 3) for name, grid in grids.items()} for key, at in shares.items()},
        "of_random": {key: round((j + 1) / WIDTH, 3) for key, (_, j) in shares.items()},
    }


if __name__ == "__main__":
    main()
