"""Unequal devices and a language model: SmolLM2-135M on the speakers of Shakespeare's plays, 20 clients, perplexity.

    python benchmarks/heterogeneity_lm.py [--minutes 40]      # goes on where it stopped; the last line is JSON

Needs the SmolLM2 base artifact (``make base-smollm``) and tinyshakespeare's input.txt in --data. The twenty speakers
with most text; ranks 1, 2, 4, 8 in turn on all matrices of the top layer over kept activations; 6 rounds of 4 steps of
2 x 64 tokens, cosine, uniform weights. The training is the product's (``fedpeft.tuning.train``), the coordinator's part
``unequal_clients.rounds``. Rates of every row over the same grid; the one with the best perplexity on validation
sequences of the clients is reported, on their test sequences. Mean: of all test tokens; worst: of the worst client.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from heterogeneity import MOMENTUM
from one_method.common import SMOLLM
from unequal_clients.cell import MIXES, TARGETS, TIERS
from unequal_clients.rounds import Aggregating

from fedpeft.aggregate.device_side import forward_state
from fedpeft.aggregate.factors import factor_of
from fedpeft.base import ArtifactStore, default_store, load_model, load_tokenizer
from fedpeft.catalogue.lora import Lora
from fedpeft.config.adapter import Adapter
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.rules import RULES, factors_of
from fedpeft.data import EncodedDataset
from fedpeft.entropy import derive_seed
from fedpeft.methods import UnionAdapter, attach, blocks_for
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import ActivationCache, evaluate, train

RESULTS = Path(__file__).parent / "results" / "heterogeneity_lm.json"
CLIENTS, LENGTH, TRAIN, HELD = 20, 64, 24, 3
ROUNDS, STEPS, BATCH = 6, 4, 2
RATES = (5e-3, 2e-2, 8e-2, 1.6e-1)
ROWS: dict[str, tuple[str, dict[str, object], int]] = {
    "fedpeft, default": ("nested", {}, 1),
    "fedit": ("fedit", {}, 1),
    "hetlora": ("hetlora", {}, 1),
    "flexlora": ("flexlora", {}, 1),
    "ffa": ("ffa", {}, 1),
    "fedpeft, momentum, 2r": ("nested", MOMENTUM, 2),
}
"""Row -> rule, options, columns for each rank (heterogeneity.py)."""
Client = dict[str, EncodedDataset]


def speakers(file: Path, tokenizer: object) -> list[Client]:
    """The clients: sequences of 64 tokens to train on, to validate and to test on; the last two from the end."""
    texts: dict[str, list[str]] = {}
    for turn in file.read_text(encoding="utf-8").split("\n\n"):
        name, _, words = turn.partition("\n")
        if name.endswith(":"):
            texts.setdefault(name, []).append(words)
    loudest = sorted(texts, key=lambda name: -len("\n".join(texts[name])))[:CLIENTS]
    found = []
    for name in loudest:
        ids = np.array(tokenizer("\n".join(texts[name]))["input_ids"], np.int32)  # type: ignore[operator]
        rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
        parts = {"train": rows[:TRAIN], "validation": rows[-2 * HELD : -HELD], "test": rows[-HELD:]}
        found.append(
            {
                part: EncodedDataset(
                    input_ids=tuple(chosen), labels=tuple(row.astype(np.int64) for row in chosen), truncated=0
                )
                for part, chosen in parts.items()
            }
        )
    return found


class Bench:
    """The base, the clients, and the activations below the top layer; one adapter at a time."""

    def __init__(self, file: Path) -> None:
        torch.set_num_threads(1)
        self.artifact = ArtifactStore(default_store()).get(SMOLLM)
        self.clients = speakers(file, load_tokenizer(self.artifact))
        self.caches = [
            {
                part: ActivationCache.for_training(examples, batch_size=BATCH, seed=_order(i), max_bytes=2**28)
                if part == "train"
                else ActivationCache.for_evaluation(examples, batch_size=HELD, max_bytes=2**28)
                for part, examples in client.items()
            }
            for i, client in enumerate(self.clients)
        ]

    def union(self, rule: str, columns: int) -> UnionAdapter:
        """A fresh adapter; the base's tensors are shared, the activations below it are the same for every one."""
        lora = Lora(
            rank=8 * columns,
            tiers=tuple(columns * tier for tier in TIERS),
            targets=(*TARGETS, "gate"),
            train="B" if RULES[rule].trains == "B" else "both",  # type: ignore[index]
        )
        model = load_model(self.artifact, task="causal-lm", labels=(), head_seed=0, residency="dense")
        return attach(model, Adapter(layers=1, lora=lora), seed=0)

    def perplexities(self, union: UnionAdapter, part: str) -> tuple[float, float]:
        """Of all tokens together, and of the worst client."""
        scores = [
            evaluate(union, client[part], limit=0, batch_size=HELD, cache=cache[part])
            for client, cache in zip(self.clients, self.caches, strict=True)
        ]
        together = sum(one.loss_sum for one in scores) / sum(one.examples for one in scores)
        return math.exp(together), math.exp(max(one.loss_sum / one.examples for one in scores))


def _order(client: int) -> int:
    return derive_seed(0, "batches", str(client))


def run(bench: Bench, name: str, rate: float) -> dict[str, float]:
    """One federation."""
    rule_name, options, columns = ROWS[name]
    rule = Aggregate.model_validate({"rule": rule_name, "weight": "uniform", **options})
    union = bench.union(rule_name, columns)
    ranks = [columns * MIXES["uniform"][client % 4] for client in range(CLIENTS)]
    everybody = range(CLIENTS)
    federation = Aggregating(rule, union.initial_state(), ranks, [TRAIN] * CLIENTS, everybody, seed=0)
    began = time.process_time()
    for round_id in range(1, ROUNDS + 1):
        factors = factors_of(rule.rule, round_id, a_round_every=rule.a_round_every)
        factor = 0.5 * (1 + math.cos(math.pi * (round_id - 1) / ROUNDS))
        trained = []
        for client in everybody:
            union.load(forward_state(rule, federation.state, ranks[client]))
            blocks = blocks_for(union.spec, methods=["lora"], rank=ranks[client], head=False)
            owns = [block for block in blocks if factor_of(block) in factors]
            plan = plan_for(owns, steps=STEPS, rate=rate * factor, batch_size=BATCH)
            cache, examples = bench.caches[client]["train"], bench.clients[client]["train"]
            train(union, examples, plan, seed=_order(client), first_step=(round_id - 1) * STEPS, cache=cache)
            trained.append(union.extract(owns))
        federation.aggregate(round_id, trained)
    union.load(federation.state)
    validation, _ = bench.perplexities(union, "validation")
    mean, worst = bench.perplexities(union, "test")
    spent = round(time.process_time() - began, 1)
    return {"validation": validation, "mean": mean, "worst": worst, "bytes_up": federation.sent, "cpu_s": spent}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tiny Shakespeare: input.txt")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no run after this long")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rates", nargs="+", type=float, choices=RATES, default=list(RATES))
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    until, bench = time.monotonic() + 60 * arguments.minutes, None
    for rate in arguments.rates:
        for name in arguments.rows:
            key = f"{name}/lr{rate:g}"
            if key in known or time.monotonic() > until:
                continue
            bench = bench or Bench(arguments.data / "input.txt")
            if "base" not in known:
                mean, worst = bench.perplexities(bench.union("nested", 1), "test")
                known["base"] = {"mean": mean, "worst": worst}
            known[key] = run(bench, name, rate)
            print(key, known[key], flush=True)
            RESULTS.write_text(json.dumps({"table": table(known), "runs": known}, indent=1) + "\n")
    print(json.dumps(table(known)))


def table(known: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Row -> its test perplexities at the rate that validation chose."""
    found = {"base": {key: round(value, 3) for key, value in known["base"].items()}}
    for name in ROWS:
        tried = {rate: known[f"{name}/lr{rate:g}"] for rate in RATES if f"{name}/lr{rate:g}" in known}
        if tried:
            rate = min(tried, key=lambda one: tried[one]["validation"])
            best = tried[rate]
            found[name] = {"mean": round(best["mean"], 3), "worst": round(best["worst"], 3)}
            found[name] |= {"rate": rate, "rates_tried": len(tried), "megabytes_up": round(best["bytes_up"] / 1e6, 2)}
    return found


if __name__ == "__main__":
    main()
