"""The gradients of the examples of a step by either engine, our hooks and Opacus's: CPU seconds and memory.

    python benchmarks/privacy_opacus.py [--quick] [--only METHOD ...]

MiniLM, int8, 32 x 64 tokens, one thread, every method that Opacus can do. Both compute the same
(tests/privacy/test_opacus.py): one forward and one backward pass and one gradient per example and parameter; no clip,
no noise. Alternating in one process, medians; memory is the highest of the process in a step, the heap trimmed before.
``right`` is what the catalogue's rows follow (tests/catalogue/test_opacus.py): Opacus takes at most 1.10 times our time
and memory. The last line is JSON; without ``--quick`` it is kept in benchmarks/results/privacy_opacus.json, method by
method.
"""

import argparse
import ctypes
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from privacy import MINILM, fresh, peak_mb, tokens

from fedpeft.api.opacus import UNSUPPORTED
from fedpeft.base import build, default_store
from fedpeft.catalogue import METHODS
from fedpeft.catalogue.opacus import Engine
from fedpeft.config.model import Adapter, Lora
from fedpeft.data import EncodedDataset
from fedpeft.methods import UnionAdapter, due_blocks
from fedpeft.tuning.batches import collate
from fedpeft.tuning.hook_check import hooked_gradients, hooks_of
from fedpeft.tuning.split_forward import SplitForward

RESULTS = Path(__file__).parent / "results" / "privacy_opacus.json"
ADAPTERS = {
    "head": Adapter(),
    "lora, both factors": Adapter(lora=Lora(train="both")),
    **{method.name: Adapter.having(method.section()) for method in METHODS if method.name not in UNSUPPORTED},
}
MOST = 1.10
ENGINES: tuple[Engine, Engine] = ("fedpeft", "opacus")


def main() -> None:
    """Measure every method that both can do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of each, LoRA alone")
    parser.add_argument("--times", type=int, default=3, help="steps of each, of which the median counts")
    parser.add_argument("--only", action="append", choices=sorted(ADAPTERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    artifact, examples = build(MINILM, quantize="int8", store=default_store()), tokens(32, 64, 30_000)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = kept.get("methods", {})
    for name in ["lora"] if arguments.quick else arguments.only or ADAPTERS:
        rows[name] = _both(fresh(ADAPTERS[name], artifact), examples, 1 if arguments.quick else arguments.times)
        print(name, json.dumps(rows[name]), flush=True)
        if not arguments.quick:
            _keep(rows)
    print(json.dumps(_keep(rows) if not arguments.quick else rows))


def _keep(rows: dict[str, dict[str, float | bool]]) -> dict[str, object]:
    found = {
        "opacus_over_ours_max": max(row["opacus_over_ours"] for row in rows.values()),
        "memory_over_ours_max": max(row["memory_over_ours"] for row in rows.values()),
        "methods": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _both(union: UnionAdapter, examples: EncodedDataset, times: int) -> dict[str, float | bool]:
    steps = {engine: _step(engine, union, examples) for engine in ENGINES}
    for step in steps.values():
        step()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(times):
        for name, step in steps.items():
            ctypes.CDLL(None).malloc_trim(0)
            seen[name].append(peak_mb(step))
    seconds = {name: statistics.median(s for s, _ in found) for name, found in seen.items()}
    peak = {name: statistics.median(mb for _, mb in found) for name, found in seen.items()}
    ratios = seconds["opacus"] / seconds["fedpeft"], peak["opacus"] / peak["fedpeft"]
    return {
        "ours_s": round(seconds["fedpeft"], 4),
        "opacus_s": round(seconds["opacus"], 4),
        "opacus_over_ours": round(ratios[0], 3),
        "ours_mb": round(peak["fedpeft"]),
        "opacus_mb": round(peak["opacus"]),
        "memory_over_ours": round(ratios[1], 3),
        "right": max(ratios) <= MOST,
    }


def _step(engine: Engine, union: UnionAdapter, examples: EncodedDataset) -> Callable[[], object]:
    blocks = due_blocks(union.spec, union.adapter, 1)
    union.train_only(blocks)
    trained = {name: p for block in sorted(blocks) for name, p in union.parameters(block).items()}
    split, hooks = SplitForward(union), hooks_of(engine, union.model, trained)
    batch = collate(examples, np.arange(len(examples)), pad_id=split.pad_id, device=split.device)
    return lambda: hooked_gradients(hooks, split, batch, None)


if __name__ == "__main__":
    main()
