"""fedpeft's cells: the whole product, secure aggregation and all, on the run.toml that `fedpeft init` writes."""

import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.suite.places import Cell, overrides_of, template
from benchmarks.suite.table import joined
from fedpeft.adapter import AdapterState
from fedpeft.config import load
from fedpeft_server.run.records import RoundMetrics
from fedpeft_sim.baselines import held_out_scores
from fedpeft_sim.simulate import prepare, simulate
from fedpeft_sim.simulation import Simulation

__all__ = ["NotThere", "opened", "run"]

GRID = re.compile(r"grid rate=(?P<rate>[\d.e-]+) steps=(?P<steps>[\d.]+)")


class NotThere(Exception):
    """What a cell needs is not on this machine."""


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


def opened(cell: Cell, data: Path, folder: Path) -> Simulation:
    """The cell's run, prepared: what every system gets its base, split, steps and batches from.

    Raises:
        NotThere: the data set is not under ``data``.
    """
    try:
        written = template(cell, data, folder)
    except FileNotFoundError as error:
        raise NotThere(f"no {error.filename}") from error
    config = load(written, overrides=overrides_of(cell), simulation=True)
    if found := GRID.fullmatch(cell.system):  # as many steps in all, in more or fewer rounds
        steps = max(1, round(config.train.local_steps * float(found["steps"])))
        count = max(3, round(cell.rounds * config.train.local_steps / steps))
        more = [f"train.learning_rate={found['rate']}", f"train.local_steps={steps}", f"rounds.count={count}"]
        config = load(written, overrides=[*overrides_of(cell), *more], simulation=True)
    return prepare(config.model_copy(update={"directory": folder / "runs"}), Quiet())


def scores_of(simulation: Simulation, state: AdapterState) -> dict[str, Any]:
    """Loss and accuracy of a state on all held-out examples, and the client that is worst off."""
    found = held_out_scores(simulation.plan, state, simulation.examples, simulation.pool)
    return joined(
        {name: (one.loss_sum, float(one.correct), one.examples) for name, one in found.items()},
        writes=simulation.plan.task.record.writes,
    )


def run(cell: Cell, data: Path, folder: Path) -> dict[str, Any]:
    """One federation: scores at its start and end, after each round, bytes and CPU seconds a device."""
    simulation = opened(cell, data, folder)
    writes = simulation.plan.task.record.writes
    start = scores_of(simulation, simulation.initial) if writes else None
    clients = len(simulation.population.clients)
    ends: list[float] = []

    def ended(_row: RoundMetrics) -> str:
        ends.append(time.process_time())
        return ""

    began = time.process_time()
    path = simulate(
        simulation,
        Quiet(),
        source=(folder / "run.toml").read_text(encoding="utf-8"),
        command=sys.argv,
        baselines=False,
        watch=lambda _run: ended,
    )
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    compared = {row["client"]: row["federated"] for row in summary["comparison"]}
    whole = compared.pop("all")
    found = {"worst": max(compared.values()) if writes else min(compared.values())}
    found |= {"loss": math.log(whole), "worst": math.log(found["worst"])} if writes else {"accuracy": whole}
    trained = rows[: len(ends)]
    return {
        "start": start,
        "end": {key: round(value, 5) for key, value in found.items()},
        "curve": [{"loss": row["loss"], "accuracy": row["accuracy"]} for row in rows[1:]],
        "rounds_made": len(ends),
        "clients": clients,
        "bytes_up": round(sum(row["bytes_up"] for row in trained) / clients),
        "bytes_down": round(sum(row["bytes_down"] for row in trained) / clients),
        "cpu_s": round((ends[-1] - began) / clients, 2),
        "steps": simulation.plan.train.local_steps,
        "batch": simulation.plan.train.batch_size,
        "sha_of_data": simulation.population.digest(),
    }
