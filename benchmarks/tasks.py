"""Every task: each client alone, the federation under secure aggregation, and all data in one place.

    python benchmarks/tasks.py                  goes on where it stopped (--only TASK..., --seeds N, --data FOLDER)
    python benchmarks/tasks.py --quick          small cells of one seed, nothing kept (under a minute)

A cell is one `fedpeft.simulate(..., baselines=True)`: the product's own comparison on all clients' held-out examples
(a fifth). Clients differ as their data does: most of their examples are of about one length, the rest anybody's.
Reported are the mean of the clients' own models, the federation's, the centralised one's, and the share of the gap
that the federation closes; 0.8 is meant. A federation's client takes as many steps as it takes alone; the centralised
model sees as many samples as all of them together. Data from --data, or the folder in FEDPEFT_DATA: stsb/en-train.csv,
wnut17/train.conll, pubmedqa/ori_pqal.json, banking77/train.csv, e2e/devset.csv; preferences are made from the
docstrings of the running Python's standard library. Ends with one JSON object on its last line; all is kept in
results/tasks.json.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from unequal_clients.banking import BASE

import fedpeft
from fedpeft.data.docstrings import stdlib_docstrings
from fedpeft.entropy import generator

RESULTS = Path(__file__).parent / "results" / "tasks.json"
SMOLLM2 = "sha256:da6ac6bee8842bc77fc02471110ffb7686e957bf9c5b92ddc91ee374dd322584"
OWN = 0.7
CLOSED = 0.8
LONGEST_PROMPT, LONGEST_ANSWER = 160, 60  # characters
Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One task on one data set.

    Args:
        rows: from the data folder.
        task: [task] of run.toml.
        base: digest of the artifact.
        rounds, steps, batch: of the federation.
        layers: how many of the top ones adapt; None: all.
        clients: how many share the examples.
        most: examples of a whole cell.
    """

    rows: Callable[[Path], Rows]
    task: Mapping[str, Any]
    base: str = BASE
    rounds: int = 10
    steps: int = 8
    batch: int = 16
    layers: int | None = 2
    clients: int = 6
    most: int = 6000


def stsb(data: Path) -> Rows:
    """Pairs of sentences, and how alike they are."""
    with (data / "stsb" / "en-train.csv").open(encoding="utf-8", newline="") as file:
        return [{"text": one, "text_pair": other, "label": float(score)} for one, other, score in csv.reader(file)]


def wnut17(data: Path) -> Rows:
    """Words and the entities that they are of."""
    found: Rows = []
    for block in (data / "wnut17" / "train.conll").read_text(encoding="utf-8").replace("\t\n", "\n").split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if line.strip()]
        if pairs:
            found.append({"words": [pair[0] for pair in pairs], "tags": [pair[1] for pair in pairs]})
    return found


def pubmedqa(data: Path) -> Rows:
    """A question and an abstract: yes, no or maybe."""
    whole = json.loads((data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    return [
        {"text": one["QUESTION"], "text_pair": " ".join(one["CONTEXTS"]), "label": one["final_decision"]}
        for one in whole.values()
    ]


def banking77(data: Path) -> Rows:
    """A question to a bank, and its intent."""
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]


def same_intent(data: Path) -> Rows:
    """Two questions of one intent each; every question is in one pair at most."""
    rows = banking77(data)
    waiting: dict[str, str] = {}
    found: Rows = []
    for place in generator(0, "same intent").permutation(len(rows)):
        text, intent = rows[place]["text"], rows[place]["label"]
        if intent in waiting:
            found.append({"anchor": waiting.pop(intent), "positive": text})
        else:
            waiting[intent] = text
    return found


def e2e(data: Path) -> Rows:
    """Facts of a restaurant, and a text that says them."""
    with (data / "e2e" / "devset.csv").open(encoding="utf-8", newline="") as file:
        return [{"prompt": f"{row['mr']}\n", "completion": row["ref"]} for row in csv.DictReader(file)]


def preferences(data: Path) -> Rows:
    """A short function of the standard library: its own docstring, or another function's."""
    rows = [row for row in stdlib_docstrings().rows if len(str(row["prompt"])) < LONGEST_PROMPT]
    answers = [str(row["completion"])[:LONGEST_ANSWER] for row in rows]
    others = np.roll(generator(0, "preferences").permutation(len(rows)), 1)
    return [
        {"prompt": str(row["prompt"]), "chosen": own, "rejected": answers[other]}
        for row, own, other in zip(rows, answers, others, strict=True)
        if answers[other] != own
    ]


PLACES: Mapping[str, Place] = {
    "stsb": Place(rows=stsb, task={"kind": "regression", "range": [0, 5], "max_length": 64}, most=1200),
    "wnut17": Place(rows=wnut17, task={"kind": "token-classify", "max_length": 64}, rounds=6, steps=12, most=1500),
    "pubmedqa": Place(rows=pubmedqa, task={"kind": "classify", "max_length": 128}, rounds=6, steps=6, batch=8),
    "banking77": Place(rows=banking77, task={"kind": "classify", "max_length": 48}),
    "same-intent": Place(rows=same_intent, task={"kind": "embeddings", "max_length": 32}, rounds=8, most=1800),
    "preferences": Place(
        rows=preferences,
        task={"kind": "preference", "max_length": 160},
        base=SMOLLM2,
        rounds=3,
        steps=4,
        batch=4,
        clients=4,
        most=160,
    ),
    "e2e": Place(  # twelve rounds: after four the centralised model has taken 64 steps and the federation 16
        rows=e2e, task={"kind": "causal-lm", "max_length": 96}, base=SMOLLM2, rounds=12, steps=4, batch=4, layers=4,
        clients=4, most=200,
    ),
}  # fmt: skip


def clients_of(rows: Rows, clients: int, seed: int) -> dict[str, Rows]:
    """Rows dealt by length, all but ``1 - OWN`` of them, which go anywhere."""
    draw = generator(seed, "clients")
    lengths = np.array([len(json.dumps(row)) for row in rows]) + draw.random(len(rows))
    whose = np.argsort(np.argsort(lengths)) * clients // len(rows)
    anywhere = draw.random(len(rows)) > OWN
    whose[anywhere] = draw.integers(0, clients, int(anywhere.sum()))
    return {f"client-{i}": [row for row, own in zip(rows, whose, strict=True) if own == i] for i in range(clients)}


def cell(place: Place, data: Path, seed: int, *, quick: bool, store: Path | None) -> dict[str, Any]:
    """One federation with both baselines."""
    rows = place.rows(data)
    most, clients = (min(360, place.most), 3) if quick else (place.most, place.clients)
    chosen = generator(seed, "rows").permutation(len(rows))[:most]
    layers = place.layers or "all"
    config = {
        "run": {"name": "tasks", "seed": seed},
        "base": {"model": place.base},
        "task": dict(place.task),
        "adapter": {"lora": {"rank": 8, "targets": ["q", "v"]}, "layers": layers},
        "train": {"local_steps": 2 if quick else place.steps, "batch_size": place.batch},
        "rounds": {"count": 2 if quick else place.rounds},
    }
    dealt = clients_of([rows[i] for i in chosen], clients, seed)
    begun, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="fedpeft-tasks-") as out:
        result = fedpeft.simulate(config, dealt, out=out, store=store, baselines=True)
        summary = result.summary
        if summary is None:
            raise RuntimeError(f"the run has no summary: {result}")
        (whole,) = [row for row in summary.comparison if row.client == "all"]
        kept = {"metric": summary.metric, "mode": result.view.config().secagg.mode, "clients": clients}
        kept |= {"rows": len(chosen), "rounds": config["rounds"]["count"]}
        metrics = dict(result.rounds[-1].metrics)
    scores = {"alone": whole.alone, "federated": whole.federated, "centralised": whole.centralised}
    last = {name: value for name, value in metrics.items() if "/" not in name}
    cost = {"seconds": round(time.monotonic() - begun), "cpu_seconds": round(time.process_time() - cpu)}
    return {**kept, **scores, "gap_closed": gap_closed(**scores), "last": last, **cost}


def gap_closed(alone: float | None, federated: float | None, centralised: float | None) -> float | None:
    """Of the way from alone to centralised; None where there is none to speak of."""
    if alone is None or federated is None or centralised is None or abs(centralised - alone) < 1e-9:
        return None
    return (federated - alone) / (centralised - alone)


def summary_of(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Per task the means over its seeds, and whether the bar is held."""
    found: dict[str, Any] = {}
    for task in PLACES:
        own = [one for key, one in cells.items() if key.rpartition("/")[0] == task]
        if not own:
            continue
        means = {name: float(np.mean([one[name] for one in own])) for name in ("alone", "federated", "centralised")}
        closed = gap_closed(**means)
        found[task] = {"metric": own[0]["metric"], "seeds": len(own), **means, "gap_closed": closed}
        found[task]["held"] = closed is not None and closed >= CLOSED
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*PLACES], default=[*PLACES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEDPEFT_DATA", "data")))
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--most", type=int, help="Examples of a cell, instead of the task's.")
    parser.add_argument("--rounds", type=int, help="Rounds of a cell, instead of the task's.")
    given = parser.parse_args()
    own = {name: getattr(given, name) for name in ("most", "rounds") if getattr(given, name)}
    known: dict[str, Any] = {}
    if not given.quick and RESULTS.exists():
        known = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    for task in given.only:
        for seed in range(1 if given.quick else given.seeds):
            key = f"{task}/{seed}"
            if key in known:
                continue
            known[key] = cell(replace(PLACES[task], **own), given.data, seed, quick=given.quick, store=given.store)
            print(key, json.dumps(known[key]), flush=True)
            if not given.quick:
                content = {"cells": known, "summary": summary_of(known)}
                RESULTS.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps({"cells": known, "summary": summary_of(known)}, sort_keys=True))


if __name__ == "__main__":
    main()
