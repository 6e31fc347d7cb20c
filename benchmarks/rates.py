"""Learning rates in the product: whole simulated federations, secure sum and all, at fixed rates and at "auto".

    python benchmarks/rates.py            goes on where it stopped; hours on a busy core (--only NAME... for some)
    python benchmarks/rates.py --quick    one small setting, two rates, nothing kept (under a minute)

Every setting is what `fedpeft init` writes, cut to what a busy CPU core allows (rounds, steps, sequence length, which
each row states), on a base and a data set of its own: what holds on one data set is no rule. Data sets that are no part
of the product are read from --data and left out where they are not there. One seed. "Kept" is the share of the best
fixed rate's gain in held-out loss, over the state before training, that another rate reaches.

Ends with one JSON object on its last line; everything is kept in benchmarks/results/rates.json.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from one_method.common import DATA, GGUF, MINILM, SMOLLM
from one_method.readers import READERS

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.head_start import measures_head
from fedpeft.config import parse
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, due_blocks
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.tuning import LocalPlan, evaluate, train
from fedpeft.tuning.class_means import measure_class_means
from fedpeft_client.training.examples import Prepared, batch_seed
from fedpeft_sim.simulate import prepare
from fedpeft_sim.simulation import Simulation

RESULTS = Path(__file__).parent / "results" / "rates.json"
GRID = (0.003, 0.01, 0.03, 0.1)
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run.toml.

    Args:
        source: ``data.source``, or the name of a function below that makes a file of rows.
        tables: the rest of the file.
        rates: fixed rates to try.
        evaluated: held-out examples of a client.
    """

    source: str
    tables: str
    rates: tuple[float, ...] = GRID
    evaluated: int = 16


ENCODER = f'[base]\nmodel = "{MINILM}"\nquantize = "{{quantize}}"\n'
ENCODER += '[task]\nkind = "classify"\nmax_length = {length}\n'
SMALL_LM = GGUF if GGUF.is_file() else SMOLLM  # one artifact: the file, or what `make base-smollm` built of it
DECODER = f'[base]\nmodel = "{SMALL_LM}"\nquantize = "int4-g32"\n[task]\nkind = "causal-lm"\nmax_length = {{length}}\n'
TEMPLATE = "[adapter]\nlora = {rank = 8}\n"
ROUNDS, STEPS = 3, 5


def table(base: str, partition: str, *, length: int = 48, batch: int = 4, **more: str) -> str:
    """The text of a run.toml but for its source."""
    text = base.format(length=length, quantize=more.get("quantize", "int8")) + more.get("adapter", TEMPLATE)
    # Class means take a round of their own.
    rounds = int(more.get("rounds", ROUNDS)) + int(more.get("spare", "0"))
    train = f"[train]\nlocal_steps = {more.get('steps', STEPS)}\nbatch_size = {batch}\n"
    return text + f"{train}[rounds]\ncount = {rounds}\n[data]\npartition = {{{partition}}}\n"


TOP = "[adapter]\nlayers = 2\nlora = {rank = 8}\n"
IID4 = 'by = "iid", clients = 4'
AIRLINE = 'by = "column", column = "airline"'
ALL = 'targets = ["q", "k", "v", "o", "up", "down"]'
DEMO = '[adapter]\nlayers = 2\nlora = {rank = 8, targets = ["q", "v", "down"]}\nbitfit = {}\n'
SETTINGS = {
    "the demo's tweets, five rounds of twelve steps": Setting(
        source="tweets",
        tables=table(ENCODER, AIRLINE, length=64, batch=16, rounds="5", steps="12", adapter=DEMO),
        evaluated=50,
    ),
    "airlines": Setting(source="airlines", tables=table(ENCODER, AIRLINE)),
    "shakespeare, top 2 layers": Setting(
        source="shakespeare",
        tables=table(DECODER, 'by = "column", column = "speaker"', batch=2, adapter=TOP),
        rates=(0.003, 0.01, 0.03, 0.1, 0.3),
    ),
    "banking77, dirichlet 0.3, top 2 layers": Setting(
        source="banking",
        tables=table(ENCODER, 'by = "dirichlet", clients = 6, alpha = 0.3', batch=8, spare="1", steps="8", adapter=TOP),
        evaluated=40,
    ),
    "docstrings, top 4 layers, mlp too": Setting(
        source="builtin:stdlib-docstrings",
        tables=table(
            DECODER,
            'by = "column", column = "module_group"',
            batch=2,
            length=96,
            adapter='[adapter]\nlayers = 4\nlora = {rank = 8, targets = ["q", "v", "up", "down"]}\n',
        ),
    ),
    "airlines, nf4, top 2 layers, every matrix, biases": Setting(
        source="airlines",
        tables=table(
            ENCODER,
            AIRLINE,
            quantize="nf4",
            adapter=f"[adapter]\nlayers = 2\nlora = {{rank = 8, {ALL}}}\nbitfit = {{}}\n",
        ),
    ),
    "pubmedqa": Setting(source="pubmedqa", tables=table(ENCODER, IID4, length=64)),
    "e2e, all layers": Setting(
        source="e2e", tables=table(DECODER, 'by = "iid", clients = 3', batch=2, length=64), rates=(0.003, 0.01, 0.03)
    ),
    "stsb, rank 2, both factors": Setting(
        source="stsb",
        tables=table(ENCODER, IID4, adapter='[adapter]\nlora = {rank = 2, train = "both"}\n'),
    ),
    "pubmedqa, IA3": Setting(
        source="pubmedqa", tables=table(ENCODER, IID4, length=64, adapter="[adapter]\nia3 = {}\n")
    ),
}


QUICK = Setting(source="airlines", tables=table(ENCODER, AIRLINE, batch=2).replace("count = 3", "count = 1"))


class Quiet:
    """A screen that says nothing."""

    def observe(self, event: object) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def hint(self, text: str) -> None:
        """Nothing."""

    def working(self, what: str, done: int, total: int) -> None:
        """Nothing."""


def opened(setting: Setting, data: Path, folder: Path) -> Simulation | None:
    """The setting with its data and base loaded; None where the data is not there."""
    source = setting.source
    if source in READERS:
        try:
            rows = READERS[source](data)
        except FileNotFoundError:
            return None
        file = folder / f"{source}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = str(file)
    text = setting.tables.replace("[data]\n", f'[data]\nsource = "{source}"\n')
    config = parse(text, source="rates", simulation=True).model_copy(update={"directory": folder / "runs"})
    return prepare(config, Quiet())


def cell(simulation: Simulation, rate: float | str, *, evaluated: int) -> dict[str, Any]:
    """One federation at one rate: the held-out loss and accuracy after each round, of all clients alike."""
    plan = simulation.plan
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"learning_rate": rate})})
    state, began, losses, right = simulation.initial, time.process_time(), [], []
    prepared = {name: own.prepared(plan) for name, own in simulation.examples.items()}
    with simulation.pool.lend(plan) as union:
        losses_of, right_of = scored(union, state, prepared, evaluated)
        losses.append(losses_of)
        right.append(right_of)
        for round_id in range(1, plan.rounds.count + 1):
            state = between_rounds(averaged(union, plan, state, prepared, round_id), plan.adapter, round_id)
            losses_of, right_of = scored(union, state, prepared, evaluated)
            losses.append(losses_of)
            right.append(right_of)
    rates = {
        str(block): float(f"{value:.3g}") for block, value in learning_rates(plan, state.spec, trainable(state)).items()
    }
    return {"loss": losses, "accuracy": right, "rates": rates, "cpu_s": round(time.process_time() - began, 1)}


def trainable(state: AdapterState) -> list[BlockId]:
    """What a device trains that affords all."""
    return [block.block_id for block in state.spec.blocks if block.trainable]


def averaged(
    union: UnionAdapter, plan: LearningPlan, state: AdapterState, prepared: Mapping[str, Prepared], round_id: int
) -> AdapterState:
    """The mean of what the clients make of the state: what the secure sum gives, up to its fixed-point step."""
    due = [block for block in due_blocks(union.spec, plan.adapter, round_id) if union.spec[block].trainable]
    due = [block for block in due if not (block.startswith("lora.A") and plan.adapter.lora.train == "B")]
    sums = {block: np.zeros(union.spec[block].size) for block in due}
    for name, own in prepared.items():
        union.load(state)
        seed, steps = batch_seed(plan.seed, name), plan.train.local_steps
        if measures_head(union.spec, plan.adapter, round_id):
            size = plan.train.batch_size
            measure_class_means(union, own.train, steps=steps, batch_size=size, seed=seed, cache=own.train_cache)
        else:
            local = LocalPlan(
                steps=steps,
                batch_size=plan.train.batch_size,
                optimizer="adamw",
                learning_rates=learning_rates(plan, union.spec, due),
                weight_decay=0.0,
                max_grad_norm=1.0,
            )
            first = (round_id - 1) * steps
            train(union, own.train, local, seed=seed, first_step=first, cache=own.train_cache)
        for block, values in union.extract(due).items():
            sums[block] += values
    return state.replace({block: (total / len(prepared)).astype(np.float32) for block, total in sums.items()})


def scored(
    union: UnionAdapter, state: AdapterState, prepared: Mapping[str, Prepared], evaluated: int
) -> tuple[float, float]:
    """Mean loss and accuracy over the clients' held-out examples."""
    union.load(state)
    found = [
        evaluate(union, own.held_out, limit=evaluated, batch_size=own.eval_batch, cache=own.eval_cache)
        for own in prepared.values()
    ]
    count = sum(one.examples for one in found)
    return round(sum(one.loss_sum for one in found) / count, 4), round(sum(one.correct for one in found) / count, 4)


def kept(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Rate -> share of the best fixed rate's gain in loss."""
    start = next(iter(cells.values()))["loss"][0]
    best = max(start - one["loss"][-1] for rate, one in cells.items() if rate != AUTO)
    return {rate: round((start - one["loss"][-1]) / best, 3) for rate, one in cells.items()} if best > 0 else {}


def main() -> None:
    """Every cell that is not there yet."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=DATA, help="where the public data sets lie")
    arguments.add_argument("--only", nargs="*", help="settings")
    arguments.add_argument("--rate", nargs="*", help="rates, or auto; default: the setting's and auto")
    arguments.add_argument("--again", action="store_true", help="measure cells that are there, too")
    arguments.add_argument("--quick", action="store_true")
    options = arguments.parse_args()
    logging.disable(logging.WARNING)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            simulation = opened(QUICK, options.data, Path(folder))
            print(json.dumps({str(rate): cell(simulation, rate, evaluated=4) for rate in (0.01, AUTO)}))
        return
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name, setting in SETTINGS.items():
        cells = found.setdefault(name, {"cells": {}})["cells"]
        wanted = options.rate or [*map(str, setting.rates), AUTO]
        missing = [rate for rate in wanted if options.again or rate not in cells]
        if not missing or (options.only is not None and name not in options.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            simulation = opened(setting, options.data, Path(folder))
            if simulation is None:
                continue
            found[name]["toml"] = setting.tables
            for rate in missing:
                cells[rate] = cell(simulation, rate if rate == AUTO else float(rate), evaluated=setting.evaluated)
                found[name]["kept"] = kept(cells)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(name, rate, json.dumps(cells[rate]), flush=True)
    print(json.dumps({name: one.get("kept") for name, one in found.items()}))


if __name__ == "__main__":
    main()
