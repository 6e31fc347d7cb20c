"""Every PEFT method on small models, and what training them costs against full fine-tuning and transformers' Trainer.

    python benchmarks/methods.py --quick | --bars | --full

Quick: every method on a tiny encoder and decoder (starts as the base, moves all that is due and nothing else, the loss
falls), and LoRA on MiniLM 8 x 128 against transformers.Trainer with peft. Full, resumable (finished measurements
are kept in benchmarks/results/methods.json and not repeated): each method on the airline tweets (MiniLM) and on
docstrings (SmolLM2), one process each; the activation cache; memory against full fine-tuning; BANKING77. Times are CPU
seconds of one thread, medians; memory is the process's peak. The last line is JSON: ``methods_passed``,
``methods_failed``, ``step_ratio_vs_trainer``, ``step_ratio_equal_dropout``, ``cache_step_ratio``,
``cache_loss_difference``, ``memory_ratio_nf4``, ``memory_ratio_cache``, ``memory_model_max_error``, ``efficiency``,
``table``.
"""

import argparse
import json
import os
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path

from methods_one import measure

from fedpeft.config.model import MethodName

RESULTS = Path(__file__).parent / "results" / "methods.json"
MINILM, SMOLLM = "minilm", "smollm"
LORA = {"lora": {"rank": 8, "tiers": [8]}}
Measured = dict[str, typing.Any]


def main() -> None:
    """Measure what is asked for and not yet known, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    size.add_argument("--bars", action="store_true", help="Of the full run what the bars name, without the tables.")
    size.add_argument("--one", metavar="JSON", help="Measure one configuration in this process.")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(json.loads(asked.one))))
        return
    kept = not asked.quick
    known: dict[str, Measured] = json.loads(RESULTS.read_text())["runs"] if kept and RESULTS.exists() else {}
    wanted = quick() | (full() if kept else {})
    if asked.bars:
        wanted = {name: run for name, run in wanted.items() if not name.startswith((MINILM, SMOLLM, "banking77"))}
    for number, (name, settings) in enumerate(wanted.items(), 1):
        if name not in known:
            print(f"[{number}/{len(wanted)}] {name}", flush=True)
            known[name] = in_own_process(settings)
            if kept:
                keep(known, summary(known))
    found = summary(known)
    for line in table(known):
        print(line)
    print(json.dumps(found))


def quick() -> dict[str, Measured]:
    """What fits a minute."""
    return {
        "every method": {"what": "methods"},
        "trainer": {"what": "trainer", "steps": 3},
    }


def full() -> dict[str, Measured]:
    """One process each: methods, then the bars of memory and of the cache, then BANKING77."""
    runs: dict[str, Measured] = {"build": {"what": "build"}}
    for base, steps in ((MINILM, 60), (SMOLLM, 12)):
        common = {"what": "train", "base": base, "steps": steps, "batch": 8, "length": 128 if base == SMOLLM else 64}
        runs[f"{base} full"] = common | {"adapter": None}
        for method in typing.get_args(MethodName):
            if method == "bitfit" and base == SMOLLM:
                continue  # refused: no biases
            runs[f"{base} {method}"] = common | {"adapter": LORA if method == "lora" else {method: settings_of(method)}}
    smollm = {"what": "train", "base": SMOLLM, "steps": 4, "batch": 8, "length": 128, "even": True}
    runs["memory full"] = smollm | {"adapter": None}
    runs["memory lora"] = smollm | {"adapter": LORA}
    runs["memory lora nf4"] = smollm | {"adapter": LORA, "residency": "quantized", "quantize": "nf4"}
    recomputed = {"residency": "quantized", "quantize": "nf4", "checkpointing": True}
    runs["memory lora nf4 recomputed"] = smollm | {"adapter": LORA} | recomputed
    runs["memory top 6"] = smollm | {"adapter": LORA | {"layers": 6}}
    top = {"adapter": LORA | {"layers": 6}, "residency": "quantized", "quantize": "nf4", "cached": 32, "steps": 12}
    runs["memory top 6 cached"] = smollm | top
    runs["memory ia3"] = smollm | {"adapter": {"ia3": {}}}
    runs["memory bottleneck"] = smollm | {"adapter": {"bottleneck": {}}}
    runs["cache"] = {"what": "cache"}
    banking = {"what": "train", "base": MINILM, "data": "banking77", "batch": 32, "length": 48, "rate": 3e-3}
    runs["banking77 full"] = banking | {"adapter": None, "steps": 1500, "rate": 2e-4}
    houlsby = {"bottleneck": {"width": 32}, "layernorm": {}}
    runs["banking77 houlsby"] = banking | {"adapter": houlsby, "steps": 1500}
    for rank in (1, 2, 4, 8, 64):
        runs[f"banking77 lora r{rank}"] = banking | {"adapter": {"lora": {"rank": rank, "tiers": [rank]}}, "steps": 600}
    return runs


def settings_of(method: str) -> Measured:
    """What does not fit a short run by default: schedules that end within it."""
    return {"adalora": {"prune_until": 2, "warmup_rounds": 0}, "diffpruning": {"prune_round": 2}}.get(method, {})


def in_own_process(settings: Measured) -> Measured:
    """The measurement of one configuration; its memory is its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, __file__, "--one", json.dumps(settings)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"}
    found: Measured = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(known: Mapping[str, Measured]) -> Measured:
    """The keys that the bars name; None where nothing was measured."""
    methods, trainer, cache = (known.get(name, {}) for name in ("every method", "trainer", "cache"))
    peaks = {name: found["peak_mb"] for name, found in known.items() if "peak_mb" in found}
    errors = [found["memory_error"] for found in known.values() if found.get("memory_error") is not None]
    return {
        "methods_passed": methods.get("passed"),
        "methods_failed": methods.get("failed_methods"),
        "step_ratio_vs_trainer": trainer.get("ratio"),
        "step_ratio_equal_dropout": trainer.get("ratio_equal_dropout"),
        "cache_step_ratio": cache.get("ratio"),
        "cache_loss_difference": cache.get("loss_difference"),
        "memory_ratio_nf4": ratio(peaks, "memory lora nf4", "memory full"),
        "memory_ratio_nf4_recomputed": ratio(peaks, "memory lora nf4 recomputed", "memory full"),
        "memory_ratio_cache": ratio(peaks, "memory top 6 cached", "memory full"),
        "memory_model_max_error": max((abs(error) for error in errors), default=None),
        "efficiency": methods.get("efficiency"),
    }


def ratio(values: Mapping[str, float], one: str, other: str) -> float | None:
    """Of two measurements, if both were taken."""
    return round(values[one] / values[other], 3) if one in values and other in values else None


def table(known: Mapping[str, Measured]) -> list[str]:
    """One line a training: what it scored, what it took."""
    lines = []
    for name, found in known.items():
        if "failed" in found:
            lines.append(f"{name:30} FAILED {found['failed']}")
        elif "step_s" in found:
            score = f"accuracy {found['accuracy']:.3f}" if found.get("accuracy") else f"perplexity {found['ppl']:.2f}"
            lines.append(
                f"{name:30} {score}  loss {found['loss']:.4f}  {found['step_s']:.2f} CPU-s  {found['peak_mb']:.0f} MB  "
                f"{found['trained']:,} trained  {found['bytes_up'] / 1e3:.0f} kB"
            )
    return lines


def keep(known: Mapping[str, Measured], found: Measured) -> None:
    """Write what is known so far."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"summary": found, "runs": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
