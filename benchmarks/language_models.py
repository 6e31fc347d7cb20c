"""SmolLM2 with the template's adapters, q and v of all thirty layers, at mixed ranks: rates, and where A starts.

    python benchmarks/language_models.py            goes on where it stopped (--only NAME..., --cell START RATE)
    python benchmarks/language_models.py --line     the line search of docs/adr/0035 in each place instead
    python benchmarks/language_models.py --quick    two steps in all, nothing kept (about a minute)

Three clients of ranks 2, 4 and 8, or of one rank: the three loudest speakers of Shakespeare's plays, equal shares of
E2E's restaurants, or three groups of the standard library's docstrings. 4 rounds of 3 steps (--steps) of 2 x 48 tokens,
held-out loss over 15 sequences (one seed; cells are compared on the same sequences and batches). ``default``: A
orthonormal, drawn from the run's seed, four rounds that train. ``gradient``: the first round sums the gradient of A at
A = 0 with B = Omega (random orthonormal columns), rows as far as a device's rank goes; the SVD of the mean over a row's
owners gives A; three rounds train. Bytes are four a number. The product's training, devices one after the other, their
mean in place of the secure sum.

Ends with one JSON object on its last line; everything is kept in benchmarks/results/language_models.json.
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
import rates
from rates import DECODER, Setting, opened, scored, table

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.factors import Factors, read_factors, write_factors
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, blocks_for
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.tuning import LocalPlan, train
from fedpeft.tuning.batches import training_stream
from fedpeft.tuning.objective import Objective
from fedpeft_client.training.examples import Prepared, batch_seed
from fedpeft_sim.simulation import Simulation

RESULTS = Path(__file__).parent / "results" / "language_models.json"
ROUNDS, STEPS, EVALUATED, SKETCHED = 4, 3, 5, 2
MIXED = (2, 4, 8)
LINE = tuple(3.0**power for power in range(-2, 5))
"""Multiples of ``auto`` along the mean of the clients' first steps."""
DEFAULT, GRADIENT = "default", "gradient"
CELLS: tuple[tuple[str, float], ...] = (
    (DEFAULT, 1.0),
    (DEFAULT, 3.0),
    (GRADIENT, 1 / 3),
    (GRADIENT, 1.0),
    (DEFAULT, 1 / 3),
    (DEFAULT, 6.0),
    (DEFAULT, 10.0),
)
"""Where A starts, and the rate as a multiple of ``auto``."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data set, cut into three clients of these ranks."""

    setting: Setting
    ranks: tuple[int, int, int] = MIXED

    @property
    def rank(self) -> int:
        """The full one."""
        return max(self.ranks)


def place(source: str, partition: str, ranks: tuple[int, int, int] = MIXED, *, layers: str = "") -> Place:
    """Sequences of 48 tokens, two a step."""
    adapter = f"[adapter]\n{layers}lora = {{rank = {max(ranks)}}}\n"
    return Place(
        setting=Setting(source=source, tables=table(DECODER, partition, batch=2, length=48, adapter=adapter)),
        ranks=ranks,
    )


SPEAKER, THIRDS, GROUP = (
    'by = "column", column = "speaker"',
    'by = "iid", clients = 3',
    'by = "column", column = "group"',
)
PLACES = {
    "shakespeare": place("speakers", SPEAKER),
    "e2e": place("e2e", THIRDS),
    "docstrings": place("docstrings", GROUP),
    "shakespeare, rank 16": place("speakers", SPEAKER, (16, 16, 16)),
    "e2e, rank 2": place("e2e", THIRDS, (2, 2, 2)),
    "shakespeare, top 2 layers": place("speakers", SPEAKER, layers="layers = 2\n"),
}


def owned(union: UnionAdapter, rank: int, factor: str) -> list[BlockId]:
    """The tiers of one factor that a device of this rank has."""
    tiers = blocks_for(union.spec, methods=["lora"], rank=rank, head=False)
    return [BlockId(block.replace("lora.B", f"lora.{factor}")) for block in tiers if block.startswith("lora.B")]


def gradient_start(
    union: UnionAdapter,
    plan: LearningPlan,
    state: AdapterState,
    prepared: Mapping[str, Prepared],
    ranks: tuple[int, ...],
) -> AdapterState:
    """The state with A's rows from the sum of the devices' gradients; numbers sent are those of A's own tiers."""
    matrices = read_factors(state.spec, state)
    probe = {
        path: Factors(
            down=np.zeros_like(one.down),
            up=np.linalg.qr(generator(plan.seed, "gradient start", path).standard_normal(one.up.shape))[0],
            carried_down=one.carried_down,
            carried_up=one.carried_up,
        )
        for path, one in matrices.items()
    }
    probing = write_factors(state, probe)
    sums = {path: np.zeros_like(one.down) for path, one in matrices.items()}
    owners = np.zeros(max(ranks))
    for (name, own), rank in zip(prepared.items(), ranks, strict=True):
        union.load(probing)
        union.train_only(())
        factors = owned(union, rank, "A")
        parameters = [one for block in factors for one in union.parameters(block).values()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        objective = Objective(union, own.train, cache=None, logit_offset=None, micro_batch=0, checkpointing=False)
        stream = training_stream(own.train, batch_size=plan.train.batch_size, seed=batch_seed(plan.seed, name))
        for step in range(SKETCHED):
            objective.backward(stream.batch(step))
        length = float(sum(one.grad.square().sum() for one in parameters)) ** 0.5
        vectors = {
            block: np.concatenate([one.grad.numpy().reshape(-1) / length for one in union.parameters(block).values()])
            for block in factors
        }
        for path, found in read_factors(state.spec, vectors).items():
            sums[path] += found.down
        owners[:rank] += 1
        union.train_only(())
    made = {}
    for path, one in matrices.items():
        rows = np.linalg.svd(sums[path] / owners[:, None], full_matrices=False)[2]
        made[path] = Factors(
            down=rows, up=np.zeros_like(one.up), carried_down=one.carried_down, carried_up=one.carried_up
        )
    return write_factors(state, made)


def averaged(
    union: UnionAdapter,
    plan: LearningPlan,
    state: AdapterState,
    prepared: Mapping[str, Prepared],
    ranks: tuple[int, ...],
    *,
    round_id: int,
    factor: float,
) -> AdapterState:
    """One round: every device trains its own columns of B, what it lacks counts as unmoved."""
    sums: dict[BlockId, np.ndarray] = {}
    steps = plan.train.local_steps
    for (name, own), rank in zip(prepared.items(), ranks, strict=True):
        union.load(state)
        blocks = owned(union, rank, "B")
        local = LocalPlan(
            steps=steps,
            batch_size=plan.train.batch_size,
            optimizer="adamw",
            learning_rates={b: factor * rate for b, rate in learning_rates(plan, union.spec, blocks).items()},
            weight_decay=0.0,
            max_grad_norm=1.0,
        )
        train(union, own.train, local, seed=batch_seed(plan.seed, name), first_step=(round_id - 1) * steps)
        for block, values in union.extract(blocks).items():
            sums[block] = sums.get(block, 0) + (values - state[block]).astype(np.float64)
    return state.replace(
        {block: (state[block] + total / len(prepared)).astype(np.float32) for block, total in sums.items()}
    )


def cell(
    simulation: Simulation,
    ranks: tuple[int, ...],
    start: str,
    factor: float,
    *,
    rounds: int,
    steps: int,
    evaluated: int,
) -> dict[str, Any]:
    """One federation."""
    train_plan = simulation.plan.train.model_copy(update={"local_steps": steps})
    plan = simulation.plan.model_copy(update={"train": train_plan})
    state, began = simulation.initial, time.process_time()
    prepared = {name: own.prepared(plan) for name, own in sorted(simulation.examples.items())}
    with simulation.pool.lend(plan) as union:
        spec = union.spec
        sizes = {f: sum(spec[b].size for rank in ranks for b in owned(union, rank, f)) for f in ("A", "B")}
        if start == GRADIENT:
            state = gradient_start(union, plan, state, prepared, ranks)
        training = range(2 if start == GRADIENT else 1, rounds + 1)
        for round_id in training:
            state = averaged(union, plan, state, prepared, ranks, round_id=round_id, factor=factor)
        loss, accuracy = scored(union, state, prepared, evaluated)
        rate = next(iter(learning_rates(plan, spec, owned(union, max(ranks), "B")).values()))
    sent = 4 * (len(training) * sizes["B"] + (start == GRADIENT) * sizes["A"])
    spent = round(time.process_time() - began, 1)
    return {"loss": loss, "accuracy": accuracy, "rate": factor * rate, "bytes_up": sent, "cpu_s": spent}


def auto_rate(simulation: Simulation, rank: int) -> float:
    """The table's rate of B."""
    block = BlockId(f"lora.B.t{rank}")
    return learning_rates(simulation.plan, simulation.initial.spec, [block])[block]


def line(simulation: Simulation, ranks: tuple[int, ...], *, evaluated: int) -> dict[str, Any]:
    """The mean of the clients' first steps at auto's rate, and the held-out losses at multiples of it."""
    plan = simulation.plan.model_copy(update={"train": simulation.plan.train.model_copy(update={"local_steps": 1})})
    start, began = simulation.initial, time.process_time()
    prepared = {name: own.prepared(plan) for name, own in sorted(simulation.examples.items())}
    with simulation.pool.lend(plan) as union:
        stepped = averaged(union, plan, start, prepared, ranks, round_id=1, factor=1.0)
        losses = {}
        for multiple in LINE:
            moved = {b: (start[b] + multiple * (stepped[b] - start[b])).astype(np.float32) for b in start}
            losses[f"{multiple:.3g}"] = scored(union, start.replace(moved), prepared, evaluated)[0]
    auto = auto_rate(simulation, max(ranks))
    return {"auto": auto, "losses": losses, "cpu_s": round(time.process_time() - began, 1)}


def kept(found: Mapping[str, Any], name: str, key: str, one: Mapping[str, Any]) -> None:
    """Writes what there is by now, and says what is new."""
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(name, key, json.dumps(one), flush=True)


def main() -> None:
    """Every cell that is not there yet."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=rates.DATA, help="where tinyshakespeare and e2e lie")
    arguments.add_argument("--only", nargs="*", default=list(PLACES), choices=list(PLACES))
    arguments.add_argument("--cell", nargs=2, action="append", metavar=("START", "FACTOR"), help="these cells alone")
    arguments.add_argument("--steps", type=int, default=STEPS, help="of a round")
    arguments.add_argument("--line", action="store_true")
    arguments.add_argument("--quick", action="store_true")
    options = arguments.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    wanted = [(start, float(factor)) for start, factor in options.cell] if options.cell else list(CELLS)
    for name in options.only:
        chosen = PLACES[name]
        at = found.setdefault(name, {"toml": chosen.setting.tables, "cells": {}})
        with tempfile.TemporaryDirectory() as folder:
            simulation = opened(chosen.setting, options.data, Path(folder))
            if simulation is None:
                continue
            if options.quick:
                print(json.dumps(cell(simulation, chosen.ranks, GRADIENT, 1.0, rounds=2, steps=1, evaluated=1)))
                return
            if options.line:
                at["line"] = line(simulation, chosen.ranks, evaluated=EVALUATED)
                kept(found, name, "line", at["line"])
                continue
            sizes = {"rounds": ROUNDS, "steps": options.steps, "evaluated": EVALUATED}
            if "start" not in at:
                at["start"] = cell(simulation, chosen.ranks, DEFAULT, 0.0, **{**sizes, "rounds": 0})
            for start, factor in wanted:
                rate = factor * auto_rate(simulation, chosen.rank)
                key = f"{start} at {rate:.3g}" + (f", {options.steps} steps" if options.steps != STEPS else "")
                if key not in at["cells"]:
                    at["cells"][key] = cell(simulation, chosen.ranks, start, factor, **sizes)
                    kept(found, name, key, at["cells"][key])
    print(
        json.dumps({name: {key: one["loss"] for key, one in place["cells"].items()} for name, place in found.items()})
    )


if __name__ == "__main__":
    main()
