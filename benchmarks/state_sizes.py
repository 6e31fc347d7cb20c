"""How large a coordinate of a state becomes: what `max_state` of a run's plan has to leave room for.

    python benchmarks/state_sizes.py [--quick] [--steps 20] [--only METHOD ...]

Every method of the catalogue with its defaults, at its start and after local steps at each rate (0.003, and 0.03: ten
times the default), on the tiny encoder and decoder, and without ``--quick`` on MiniLM and SmolLM2 (8 examples of 32
tokens a step). Adam moves a coordinate by about its rate a step, so what a long run adds is in ``moved_a_step``: the
most that any coordinate went in a round, over rate times steps. Kept in benchmarks/results/state_sizes.json; the last
line is JSON: the largest start, the largest after training, the largest ``moved_a_step``, and which method it was.
"""

import argparse
import json
import math
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from methods import adapter_of
from one_method.common import built, data_of, loaded
from one_method.measure import with_earlier_adapters

from fedpeft.aggregate import between_rounds
from fedpeft.config.model import Adapter, MethodName
from fedpeft.data import EncodedDataset
from fedpeft.errors import ConfigInvalid
from fedpeft.methods import attach, due_blocks
from fedpeft.testing.models import examples_for, tiny_bert, tiny_llama
from fedpeft.testing.plans import plan_for
from fedpeft.tuning import train

RESULTS = Path(__file__).parent / "results" / "state_sizes.json"
RATES = (0.003, 0.03)
ROUNDS = 3
Row = dict[str, typing.Any]


def main() -> None:
    """Measure each method on each base, keep what comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Row] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() and not arguments.quick else {}
    for base, make, examples in bases(arguments.quick):
        for method in arguments.only or ("head", *typing.get_args(MethodName)):
            for rate in RATES[:1] if arguments.quick else RATES:
                name = f"{base}: {method} at {rate:g}"
                if name in rows:
                    continue
                row = measured(make, examples, method, rate, arguments.steps)
                if row is None:
                    continue
                rows[name] = row
                print(name, json.dumps(row), flush=True)
                if not arguments.quick:
                    RESULTS.write_text(json.dumps({"summary": summary(rows), "rows": rows}, indent=1) + "\n")
    print(json.dumps(summary(rows)))


def bases(quick: bool) -> Iterator[tuple[str, Callable[[], torch.nn.Module], EncodedDataset]]:
    """Name, a maker of fresh models, and examples that fit."""
    for build in (tiny_bert, tiny_llama):
        yield build.__name__, build, examples_for(build, 24)
    if quick:
        return
    for base, quantize in (("minilm", "int8"), ("smollm", "")):
        artifact = built(base, quantize)
        settings = {"base": base, "length": 32, "steps": ROUNDS * 20, "batch": 8}
        examples, _, labels = data_of(settings, artifact)
        yield base, lambda artifact=artifact, labels=labels: loaded(artifact, labels, "dense"), examples


def measured(
    make: Callable[[], torch.nn.Module], examples: EncodedDataset, method: str, rate: float, steps: int
) -> Row | None:
    """The largest coordinate of any block at the start and after three rounds; None where the model refuses."""
    torch.manual_seed(0)
    try:
        union = attach(make(), Adapter.model_validate_json(json.dumps(adapter_of(method))), seed=0)
    except ConfigInvalid:
        return None
    if method == "fusion":
        union.load(with_earlier_adapters(union))
    start, block = largest_of(union.state())
    most, moved = start, 0.0
    for round_id in range(1, ROUNDS + 1):
        due = due_blocks(union.spec, union.adapter, round_id)
        plan = plan_for(due, steps=steps, rate=rate)
        before = union.state()
        train(union, examples, plan, seed=round_id, first_step=(round_id - 1) * steps)
        moved = max(
            moved,
            *(float(np.abs(union.state()[one] - before[one]).max(initial=0.0)) / (rate * steps) for one in due),
        )
        union.load(between_rounds(union.state(), union.adapter, round_id))
        if largest_of(union.state())[0] > most:
            most, block = largest_of(union.state())
    return {"start": start, "most": most, "block": block, "moved_a_step": moved}


def largest_of(state: typing.Any) -> tuple[float, str]:
    """The largest magnitude and its block."""
    return max((float(np.abs(state[one.block_id]).max(initial=0.0)), str(one.block_id)) for one in state.spec.blocks)


def summary(rows: dict[str, Row]) -> Row:
    """Of all rows: the largest of each kind, and where."""
    found: Row = {}
    for key in ("start", "most", "moved_a_step"):
        name = max((name for name in rows if math.isfinite(rows[name][key])), key=lambda name: rows[name][key])
        found[key] = {"value": rows[name][key], "where": name, "block": rows[name]["block"]}
    return found


if __name__ == "__main__":
    main()
