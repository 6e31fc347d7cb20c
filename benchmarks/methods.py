"""Every PEFT method on small models, and what training them costs against full fine-tuning and transformers' Trainer.

    python benchmarks/methods.py --quick | --bars | --full | --timing

Quick: every method on a tiny encoder and decoder (starts as the base, moves all that is due and nothing else, the loss
falls), and LoRA on MiniLM 8 x 128 against transformers.Trainer with peft. Bars: and peak memory of SmolLM2 8 x 128 in
nine configurations beside what the planner predicts, and the activation cache. Full: and a table of all methods on the
airline tweets (MiniLM, int8 and NF4) and on docstrings (SmolLM2): what is learnt in the same few steps of one rate, no
method tuned, the class head trained by all. Timing: the two ratios of time anew, a few minutes on a quiet machine.

Resumable: what is in benchmarks/results/methods.json is not measured again, but for a failure. Times are CPU seconds of
one thread; memory is the process's peak. The last line is JSON: ``methods_passed``, ``methods_failed``,
``step_ratio_vs_trainer``, ``step_ratio_equal_dropout``, ``cache_step_ratio``, ``cache_loss_difference``,
``memory_ratio_nf4``, ``memory_ratio_nf4_recomputed``, ``memory_ratio_cache``, ``memory_model_max_error``,
``memory_model_errors``, ``efficiency``.
"""

import argparse
import json
import os
import subprocess
import sys
import typing
from collections.abc import Mapping

from one_method.measure import measure, predicted_mb, table_rows
from one_method.table import RESULTS, lines_of

from fedpeft.config.model import MethodName

LORA = {"lora": {"rank": 8, "tiers": [8]}}
EVERY_MATRIX = {"lora": {"rank": 8, "tiers": [8], "targets": ["q", "k", "v", "o", "up", "down", "gate"]}}
NF4 = {"residency": "quantized", "quantize": "nf4"}
TIMING = {
    "trainer": {"what": "trainer", "steps": 6},
    "cache": {"what": "cache"},
    "cached partly": {"what": "partly"},
}
MEMORY = {
    "memory full": {"adapter": None},
    "memory lora": {"adapter": LORA},
    "memory lora nf4": {"adapter": LORA} | NF4,
    "memory lora nf4 recomputed": {"adapter": LORA, "checkpointing": True} | NF4,
    "memory top 6": {"adapter": LORA | {"layers": 6}},
    "memory top 6 nf4 cached": {"adapter": LORA | {"layers": 6}, "cached": True, "steps": 4} | NF4,
    "memory ia3": {"adapter": {"ia3": {}}},
    "memory bottleneck": {"adapter": {"bottleneck": {}}},
    "memory lora, every matrix, batch 4": {"adapter": EVERY_MATRIX, "batch": 4},
}
TABLES = {
    "airlines": {"base": "minilm", "quantize": "int8", "residency": "dense", "steps": 40, "batch": 8, "length": 64},
    "docstrings": {"base": "smollm", "quantize": "", "residency": "dense", "steps": 8, "batch": 4, "length": 64},
    "airlines nf4": {
        "base": "minilm",
        "quantize": "nf4",
        "residency": "quantized",
        "steps": 40,
        "batch": 8,
        "length": 64,
    },
}
ON_NF4 = ("lora", "dora", "qalora", "ia3", "layernorm", "bottleneck", "p_tuning_v2")
Measured = dict[str, typing.Any]


def main() -> None:
    """Measure what is asked for and not yet known, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    for flag in ("quick", "bars", "full", "timing"):
        size.add_argument(f"--{flag}", action="store_true")
    size.add_argument("--one", metavar="JSON", help="Measure one configuration in this process.")
    size.add_argument("--rows", metavar="JSON", help="Measure some rows of a table, a line each.")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(json.loads(asked.one))))
        return
    if asked.rows:
        wanted_rows = json.loads(asked.rows)
        for name, row in table_rows(TABLES[wanted_rows["table"]], wanted_rows["runs"]):
            print(json.dumps([name, row]), flush=True)
        return
    known: dict[str, Measured] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() and not asked.quick else {}
    known = {name: run for name, run in known.items() if "failed" not in run and not (asked.timing and name in TIMING)}
    memory = {name: {"what": "memory"} | run for name, run in MEMORY.items()}
    wanted: dict[str, Measured] = dict(TIMING) if asked.timing else {"every method": {"what": "methods"}}
    if not asked.timing:
        wanted["trainer"] = TIMING["trainer"]
    if asked.bars or asked.full:
        wanted |= {
            "build": {"what": "build"},
            **memory,
            "cache": TIMING["cache"],
            "cached partly": TIMING["cached partly"],
        }
    for name, settings in wanted.items():
        if name not in known:
            print(name, flush=True)
            known[name] = in_own_process(settings)
            keep(known, asked.quick)
    for table in TABLES if asked.full else ():
        fill(table, known)
    for line in lines_of(known):
        print(line)
    print(json.dumps(summary(known)))


def fill(table: str, known: dict[str, Measured]) -> None:
    """Measure the rows of a table that are not known."""
    # AdapterFusion is left out: over adapters of no earlier run it learns nothing.
    every: tuple[str, ...] = tuple(name for name in typing.get_args(MethodName) if name != "fusion")
    if TABLES[table]["quantize"] == "nf4":
        names = ON_NF4
    elif TABLES[table]["base"] == "minilm":
        names = ("full", "head", *every)
    else:
        names = ("full", *(name for name in every if name != "bitfit"))  # which is refused: no biases
    runs: Measured = {f"{table}: {name}": adapter_of(name) for name in names}
    missing = {name: run for name, run in runs.items() if name not in known}
    if not missing:
        return
    line = [sys.executable, __file__, "--rows", json.dumps({"table": table, "runs": missing})]
    with subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        for said in typing.cast("typing.IO[str]", process.stdout):
            name, known[name] = json.loads(said)
            print(name, flush=True)
            keep(known, False)


def adapter_of(row: str) -> Measured | None:
    """The adapter of a table's row, its defaults but for schedules that must end within a short run; None: full."""
    short = {"lora": LORA["lora"], "adalora": {"prune_until": 2, "warmup_rounds": 0}, "diffpruning": {"prune_round": 2}}
    return {"full": None, "head": {}}.get(row, {row: short.get(row, {})})


def in_own_process(settings: Measured) -> Measured:
    """The measurement of one configuration; its memory is its own."""
    line = [sys.executable, __file__, "--one", json.dumps(settings)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"}
    found: Measured = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def environment() -> dict[str, str]:
    """One thread, and a tokenizer that can be forked."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def summary(known: Mapping[str, Measured]) -> Measured:
    """The keys that the bars name; None where nothing was measured."""
    methods, trainer, cache = (known.get(name, {}) for name in ("every method", "trainer", "cache"))
    peaks = {name: found["peak_mb"] for name, found in known.items() if "peak_mb" in found}
    errors = {
        name: round(predicted_mb(run) / peaks[name] - 1, 3)
        for name, run in MEMORY.items()
        if name in peaks and run["adapter"] is not None
    }
    return {
        "methods_passed": methods.get("passed"),
        "methods_failed": methods.get("failed_methods"),
        "step_ratio_vs_trainer": trainer.get("ratio"),
        "step_ratio_equal_dropout": trainer.get("ratio_equal_dropout"),
        "cache_step_ratio": cache.get("ratio"),
        "cache_loss_difference": cache.get("loss_difference"),
        "memory_ratio_nf4": ratio(peaks, "memory lora nf4", "memory full"),
        "memory_ratio_nf4_recomputed": ratio(peaks, "memory lora nf4 recomputed", "memory full"),
        "memory_ratio_cache": ratio(peaks, "memory top 6 nf4 cached", "memory full"),
        "memory_model_max_error": max((abs(error) for error in errors.values()), default=None),
        "memory_model_errors": errors,
        "efficiency": methods.get("efficiency"),
    }


def ratio(values: Mapping[str, float], one: str, other: str) -> float | None:
    """Of two measurements, if both were taken."""
    return round(values[one] / values[other], 3) if one in values and other in values else None


def keep(known: Mapping[str, Measured], quick: bool) -> None:
    """Write what is known so far; a quick run writes nothing."""
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"summary": summary(known), "runs": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
