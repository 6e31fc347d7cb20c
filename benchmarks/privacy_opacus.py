"""The gradients of the examples of a step, by our hooks and by Opacus's ``GradSampleModule``: CPU seconds and memory.

    python benchmarks/privacy_opacus.py [--quick]

MiniLM, int8, 32 examples of 64 tokens, one thread. Both compute the same (tests/privacy/test_opacus.py): one forward
and one backward pass and one gradient an example and parameter; no clipping, no noise. Alternating in one process,
medians.
The last line is JSON; without ``--quick`` it is kept in benchmarks/results/privacy_opacus.json.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from privacy import METHODS, MINILM, fresh, peak_mb, tokens

from fedpeft.api.opacus import UNSUPPORTED, register
from fedpeft.base import build, default_store
from fedpeft.catalogue.vera import Vera
from fedpeft.config.model import Adapter, Dora, Lora
from fedpeft.data import EncodedDataset
from fedpeft.methods import UnionAdapter
from fedpeft.tuning.batches import collate
from fedpeft.tuning.hook_check import example_losses, hooked_gradients
from fedpeft.tuning.per_sample_hooks import Hooked
from fedpeft.tuning.split_forward import SplitForward

RESULTS = Path(__file__).parent / "results" / "privacy_opacus.json"
MORE = {
    "lora r8 (A and B, q and v)": Adapter(lora=Lora(rank=8, train="both")),
    "dora": Adapter(dora=Dora()),
    "vera": Adapter(vera=Vera()),
}


def main() -> None:
    """Measure every method that both can do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two steps of each, LoRA alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    register()
    artifact, examples, rows = build(MINILM, quantize="int8", store=default_store()), tokens(32, 64, 30_000), {}
    for name, adapter in (METHODS | MORE).items():
        if adapter.model_fields_set & UNSUPPORTED.keys() or (quick and "lora" not in name):
            continue
        rows[name] = _both(fresh(adapter, artifact), fresh(adapter, artifact), examples, 2 if quick else 3)
        print(name, json.dumps(rows[name]), flush=True)
    found = {"ratio_max": max(row["ours_over_opacus"] for row in rows.values()), "methods": rows}
    if not quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def _both(ours: UnionAdapter, theirs: UnionAdapter, examples: EncodedDataset, times: int) -> dict[str, float]:
    steps = {"ours": _ours(ours, examples), "opacus": _opacus(theirs, examples)}
    for step in steps.values():
        step()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(times):
        for name, step in steps.items():
            seen[name].append(peak_mb(step))
    seconds = {name: statistics.median(s for s, _ in found) for name, found in seen.items()}
    peak = {name: max(mb for _, mb in found) for name, found in seen.items()}
    return {
        "ours_s": round(seconds["ours"], 4),
        "opacus_s": round(seconds["opacus"], 4),
        "ours_over_opacus": round(seconds["ours"] / seconds["opacus"], 3),
        "ours_mb": round(peak["ours"]),
        "opacus_mb": round(peak["opacus"]),
    }


def _trained(union: UnionAdapter) -> dict[str, torch.nn.Parameter]:
    blocks = [block.block_id for block in union.spec.blocks if block.trainable]
    union.train_only(blocks)
    return {name: p for block in blocks for name, p in union.parameters(block).items()}


def _ours(union: UnionAdapter, examples: EncodedDataset) -> Callable[[], object]:
    trained, split = _trained(union), SplitForward(union)
    hooked, batch = Hooked(union.model, trained), _batch(split, examples)
    return lambda: hooked_gradients(hooked, split, batch, None)


def _opacus(union: UnionAdapter, examples: EncodedDataset) -> Callable[[], object]:
    from opacus.grad_sample import GradSampleModule

    trained, split = _trained(union), SplitForward(union)
    for module in union.model.modules():
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))
    wrapped, batch = GradSampleModule(union.model, loss_reduction="sum", strict=False), _batch(split, examples)

    def step() -> None:
        example_losses(split, batch, None).sum().backward()
        if any(parameter.grad_sample is None for parameter in trained.values()):
            raise RuntimeError("a gradient is missing")
        for parameter in trained.values():
            parameter.grad_sample = parameter.grad = None

    step.wrapped = wrapped  # type: ignore[attr-defined] # its hooks live as long as it does
    return step


def _batch(split: SplitForward, examples: EncodedDataset):
    return collate(examples, np.arange(len(examples)), pad_id=split.pad_id, device=split.device)


if __name__ == "__main__":
    main()
