"""Ours beside other systems on the same base, splits, steps and batches; nothing tuned on either side.

    python -m benchmarks.suite --data airlines --peer flower --rounds 5 10       goes on where it stopped
    python -m benchmarks.suite --data airlines --grid                            the template beside twelve settings
    python -m benchmarks.suite --table                                           what is known, as a table
    python -m benchmarks.suite --quick                                           one small cell of each system, not kept

Ours is the run.toml that `fedpeft init` writes, secure aggregation and all. A cell is cut to what a busy core allows
(``places.py``: batch, steps, evaluated examples; the same for every system), or with --whole is of the template's size.
``flower``: FedAvg of peft's default LoRA at FlowerTune's rate, a cosine from 5e-5; ``flower 0.003`` at that rate: an
untuned peer at the first leaves most of a short run unused, so neither alone is fair. ``--peer flower`` is both.
``nvflare``: its FedAvg recipe likewise, by the interpreter FEDPEFT_NVFLARE (an environment of its own). Each
cell is a process; what is in benchmarks/results/suite.json is not measured again. Data sets that are no part of the
product come from --folder or FEDPEFT_DATA, and are left out where they are not there.

The last line is JSON: ``bars`` (ahead or level, CPU, bytes against each peer), ``grid`` (the template beside the best).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.one_method.common import DATA
from benchmarks.suite.places import OURS, PLACES, Cell
from benchmarks.suite.table import bars, best_of_grid, joined, lines

RESULTS = Path(__file__).parents[1] / "results" / "suite.json"
GRID_RATES, GRID_STEPS = (0.003, 0.01, 0.03, 0.1), (0.5, 1.0, 2.0)
ABSENT = "absent: "
Found = dict[str, Any]


def measured(cell: Cell, data: Path) -> Found:
    """One cell, in this process."""
    from benchmarks.suite import flower_peer, ours
    from benchmarks.suite.handover import hand_over

    with tempfile.TemporaryDirectory(prefix="suite-") as name:
        folder = Path(name)
        if cell.system == OURS or cell.system.startswith("grid"):
            return ours.run(cell, data, folder)
        simulation = ours.opened(cell, data, folder)
        hand_over(simulation, folder)
        _, _, rate = cell.system.partition(" ")
        common = {
            "steps": simulation.plan.train.local_steps,
            "batch": simulation.plan.train.batch_size,
            "sha_of_data": simulation.population.digest(),
        }
        del simulation
        peer = nvflare_in_its_own if cell.system.startswith("nvflare") else flower_peer.run
        found = peer(folder, rate=float(rate or 0), seed=cell.seed)
    clients, writes = len(found["end"]), PLACES[cell.place].writes
    for moment in ("start", "end"):
        if found[moment] is not None:
            found[moment] = joined({name: tuple(sums) for name, sums in found[moment].items()}, writes=writes)
    for cost in ("bytes_up", "bytes_down"):
        found[cost] = round(found[cost] / clients)
    found["cpu_s"] = round(found["cpu_s"] / clients, 2)
    return found | common | {"clients": clients, "rounds_made": cell.rounds}


def nvflare_in_its_own(folder: Path, *, rate: float, seed: int) -> Found:
    """``nvflare_peer.run`` by the interpreter that has NVFlare.

    Raises:
        NotThere: there is none.
    """
    from benchmarks.suite.nvflare_peer import VARIABLE
    from benchmarks.suite.ours import NotThere

    interpreter = os.environ.get(VARIABLE, "")
    if not Path(interpreter).is_file():
        raise NotThere(f"no {VARIABLE}, an interpreter with nvflare, torch, transformers and peft")
    repository = str(Path(__file__).parents[2])
    line = [interpreter, "-m", "benchmarks.suite.nvflare_peer", "--folder", folder, "--rate", rate, "--seed", seed]
    # By its absolute path: NVFlare starts clients as "python3", and they must be the same one.
    path = f"{Path(interpreter).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": repository, "PATH": path}
    subprocess.run([*map(str, line)], env=environment, check=True, cwd=folder, stdout=sys.stderr)
    return dict(json.loads((folder / "found.json").read_text(encoding="utf-8")))


def in_child(cell: Cell, options: argparse.Namespace) -> Found | None:
    """One cell in a process of its own; None, with a line that says why, where something is absent."""
    asked = json.dumps({name: getattr(cell, name) for name in ("place", "system", "rounds", "seed", "whole")})
    line = [sys.executable, "-m", "benchmarks.suite", "--child", asked, "--folder", str(options.folder)]
    load, began = os.getloadavg()[0], time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    last = done.stdout.strip().splitlines()[-1]
    if last.startswith(ABSENT):
        print(f"{cell.key}: left out, {last.removeprefix(ABSENT)}", flush=True)
        return None
    known = {"place": cell.place, "size": "whole" if cell.whole else "short", "system": cell.system}
    known |= {"rounds": cell.rounds, "seed": cell.seed, "wall_s": round(time.monotonic() - began, 1)}
    return known | {"load": round((load + os.getloadavg()[0]) / 2, 1)} | json.loads(last)


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """What is asked for, the shortest first."""
    systems = [OURS, *(f"{peer} {rate:g}" if rate else peer for peer in options.peer for rate in options.rates)]
    if options.quick:
        systems = [OURS, "flower 0.003"]
    if options.grid:
        systems += [f"grid rate={rate:g} steps={steps:g}" for steps in GRID_STEPS for rate in GRID_RATES]
    return [
        Cell(place=place, system=system, rounds=rounds, seed=seed, whole=options.whole)
        for rounds in sorted(options.rounds)
        for seed in range(options.seeds)
        for place in options.data
        for system in systems
    ]


def main() -> None:
    """Every cell that is not known yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(PLACES), default=["airlines", "banking77"])
    parser.add_argument("--peer", nargs="*", choices=["flower", "nvflare"], default=["flower"])
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[0.0, 0.003], help="the peers'; 0: FlowerTune's cosine"
    )
    parser.add_argument("--rounds", nargs="+", type=int, default=[5, 10, 24])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--grid", action="store_true", help="the template beside four rates x three lengths of a round")
    parser.add_argument("--whole", action="store_true", help="the template's own batches and steps")
    parser.add_argument("--folder", type=Path, default=DATA, help="where public data sets lie")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from benchmarks.suite.ours import NotThere

        try:
            print(json.dumps(measured(Cell(**json.loads(options.child)), options.folder)))
        except NotThere as why:
            print(f"{ABSENT}{why}")
        return
    known: dict[str, Found] = {}
    if options.quick:
        options.data, options.peer, options.rounds, options.seeds = ["airlines"], ["flower"], [1], 1
    elif RESULTS.is_file():
        known = json.loads(RESULTS.read_text(encoding="utf-8"))
    for cell in [] if options.table else cells_of(options):
        if cell.key in known:
            continue
        found = in_child(cell, options)
        if found is None:
            continue
        known[cell.key] = found
        print(cell.key, json.dumps({key: found[key] for key in ("end", "cpu_s", "bytes_up", "bytes_down")}), flush=True)
        if not options.quick:
            RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(known)))
    print(json.dumps({"bars": bars(known), "grid": best_of_grid(known)}))


if __name__ == "__main__":
    main()
