"""Base models: how many of the zoo are taken, whether the base is what transformers loads, and what a build costs.

    python benchmarks/models.py [--quick | --again] [--only NAME ...] [--billions 3.2] [--large] [--out FILE]

Every row of ``fedpeft/testing/zoo.json`` is built from its files as published and compared with what
``from_pretrained`` computes; LoRA on it, and on its experts, with plain peft; the forward pass in stages with the
whole one. Each in a process of its own with limits of memory and time, so one crash is one row; a row is kept in
FILE (``results/models.json``) as soon as it is there, and not measured again with the same versions but by ``--again``.
``base_models/builds.py`` has the builds of large checkpoints, ``base_models/large.py`` training on a base of 1.1e9
parameters (--large, twenty minutes). Linux.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from base_models.builds import measure_builds
from base_models.large import measure_large
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fedpeft.base import BaseArtifact, build, load_model
from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import FedpeftError
from fedpeft.testing.zoo import NAMES, ROWS, logits_apart, save_model, transformers_model
from fedpeft.testing.zoo_methods import attached, peft_apart, stages_apart

OUT = Path(__file__).parent / "results" / "models.json"
LIMIT_S, LIMIT_BYTES = 180, 6 * 2**30  # CPU seconds; by the clock ten times as long, for a busy machine
FIRST = 89  # rows that were the zoo when the bars were set, and ViT, which is none of ours
LORA = Lora(rank=4)
VERSIONS = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
UNANSWERED = ("no answer", "ended with")
BARS = {
    "accepted_of_first_90": 84,
    "accepted_of_peft": 33,
    "silent_wrong": 0,
    "lora_exact": "accepted",
    "staged_exact_of_first_90": "accepted_of_first_90 - 6",
    "build_peak_mb": 900,
    "nf4_cpu_ratio": 0.7,
    "large_step_ratio": 1.05,
    "large_memory_ratio": 0.6,
    "large_three_devices_mib": 3072,
}


def main() -> None:
    """Parse, measure what is not there yet, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Every tenth model, small checkpoints, nothing kept.")
    parser.add_argument("--again", action="store_true", help="Measure rows that FILE has already.")
    parser.add_argument("--only", nargs="*", choices=NAMES, metavar="NAME", help="These rows, and no builds.")
    parser.add_argument("--billions", type=float, help="Parameters of the large checkpoint, in 10^9; none: no builds.")
    parser.add_argument("--large", action="store_true", help="And training on a large base.")
    parser.add_argument("--out", type=Path, default=OUT, help="Where rows are kept.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = {} if options.quick or not options.out.exists() else json.loads(options.out.read_text(encoding="utf-8"))
    rows: dict[str, Any] = {name: row for name, row in kept.get("rows", {}).items() if name in ROWS}
    builds: Mapping[str, Any] = kept.get("builds", {})
    for name in options.only or (NAMES[::10] if options.quick else NAMES):
        known = rows.get(name, {})
        if options.again or known.get("versions") != VERSIONS or known["refused"].startswith(UNANSWERED):
            rows[name] = apart(name) | {"versions": VERSIONS}
            print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
            if not options.quick:
                write(options.out, rows, builds)
    if (billions := 0.06 if options.quick else options.billions) and not options.only:
        builds = {**builds, **measure_builds(billions)}
    if options.large:
        builds = {**builds, **measure_large()}
    if not options.quick:
        write(options.out, rows, builds)
    print(json.dumps(summary(rows, builds), indent=2))


def write(out: Path, rows: Mapping[str, Any], builds: Mapping[str, Any]) -> None:
    """Keep what is there."""
    content = summary(rows, builds) | {"builds": builds, "rows": {name: rows[name] for name in NAMES if name in rows}}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def summary(rows: Mapping[str, Mapping[str, Any]], builds: Mapping[str, Any]) -> dict[str, Any]:
    """Every bar by its key, and what misses it by name."""
    taken = {name: row for name, row in rows.items() if row["accepted"]}
    staged = {name for name, row in taken.items() if row["staged_exact"] and row["cut"]}
    first = NAMES[:FIRST]
    of_peft = [one for one in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING if one in CONFIG_MAPPING]
    types = {ROWS[name]["model_type"] for name in taken}
    bars = {key: builds[key] for key in BARS if key in builds}
    return {
        "models": len(rows),
        "accepted": len(taken),
        "accepted_of_first_90": len([name for name in first if name in taken]),
        "lora_exact_of_first_90": len([name for name in first if name in taken and taken[name]["lora_exact"]]),
        "staged_exact_of_first_90": len([name for name in first if name in staged]),
        "accepted_of_peft": len([one for one in of_peft if one in types]),
        "peft": len(of_peft),
        "silent_wrong": len([1 for row in taken.values() if row["wrong"]]),
        "lora_exact": len([1 for row in taken.values() if row["lora_exact"]]),
        "staged_exact": len(staged),
        "experts_exact": len([1 for row in taken.values() if row["experts_exact"]]),
        "with_experts": len([1 for row in taken.values() if row["experts_exact"] is not None]),
        **bars,
        "bars": BARS,
        "not_accepted": {name: row["refused"] for name, row in rows.items() if name not in taken},
        "wrong": {name: row["wrong"] for name, row in taken.items() if row["wrong"]},
        "not_lora_exact": [name for name, row in taken.items() if not row["lora_exact"]],
        "whole_only": [name for name, row in taken.items() if not row["cut"]],
        "not_of_peft": [one for one in of_peft if one not in types],
    }


def apart(name: str) -> dict[str, Any]:
    """One row, in a process of its own; what ends the process is the row."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(name, theirs))
    started = time.monotonic()
    process.start()
    theirs.close()
    found: dict[str, Any] | None = None
    with contextlib.suppress(EOFError):
        found = ours.recv() if ours.poll(10 * LIMIT_S) else None
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
    if found is None:
        late = time.monotonic() - started >= 10 * LIMIT_S
        found = _row(refused=f"no answer in {10 * LIMIT_S} s" if late else f"ended with {process.exitcode}")
    return found | {"seconds": round(time.monotonic() - started, 1)}


def _limited(name: str, answer: Connection) -> None:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(spent.ru_utime + spent.ru_stime) + LIMIT_S
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    try:
        answer.send(compare(name))
    except MemoryError:
        answer.send(_row(refused=f"more than {LIMIT_BYTES >> 30} GiB"))
    except Exception as error:  # the crash is what is measured
        answer.send(_row(refused=f"crash: {type(error).__name__}: {str(error)[:200]}"))


def _row(**found: object) -> dict[str, Any]:
    empty = {"accepted": False, "refused": "", "wrong": {}, "lora_exact": False, "staged_exact": False, "cut": False}
    return {**empty, "experts_exact": None, **found}


def compare(name: str) -> dict[str, Any]:
    """Build one model and compare it, for each task that it is offered for, with transformers' own, and its LoRA."""
    folder = Path(tempfile.mkdtemp())
    wrong: dict[str, float] = {}
    try:
        directory = save_model(name, folder / name)
        artifact = build(str(directory), quantize="none", store=folder / "store")
        tasks = [
            task
            for task in artifact.manifest.tasks  # transformers has no classifier of the wrappers
            if task != "classify" or ROWS[name]["kind"] != "multimodal"
        ]
        for task in tasks:
            labels = ("bad", "good") if task == "classify" else ()
            model = load_model(artifact, task=task, labels=labels, head_seed=1)
            head = {key: model.state_dict()[key] for key in artifact.manifest.tasks[task].head}
            theirs = transformers_model(directory, task, head, model.config.pad_token_id)  # type: ignore[union-attr, arg-type]
            difference, size = logits_apart(model, theirs, task)
            if difference > 2e-5 * max(1.0, size):
                wrong[f"{task}: base"] = difference
        adapted = [adapt(artifact, task, directory, folder, wrong) for task in tasks]
        exact, staged, cut, experts = ([one[part] for one in adapted] for part in range(4))
        on_experts = None if any(one is None for one in experts) else all(experts)
        parts = {"lora_exact": all(exact), "staged_exact": all(staged), "cut": all(cut), "experts_exact": on_experts}
        return _row(accepted=True, wrong=wrong, **parts)
    except FedpeftError as error:
        return _row(refused=str(error).splitlines()[0])
    finally:
        shutil.rmtree(folder)


def adapt(
    artifact: BaseArtifact, task: Any, directory: Path, folder: Path, wrong: dict[str, float]
) -> tuple[bool, bool, bool, bool | None]:
    """LoRA on a base: whether plain peft computes the same, whether the stages do, can be cut, and as LoRA on experts.

    A multimodal wrapper's adapter has the names of its language model, which peft does not look for in the wrapper.
    """
    union = attached(artifact, task, Adapter.having(LORA))
    found = peft_apart(union, directory, task, folder / task)
    if not found.exact:
        wrong[f"{task}: peft"] = found.difference
    layout = union.anatomy.layout
    last = max(index for index in range(len(layout)) if layout.select(index, "auto"))
    top = attached(artifact, task, Adapter.having(Lora(rank=4, layers=(last, len(layout) - 1))))
    staged = stages_apart(top)
    if not staged.exact:
        wrong[f"{task}: stages"] = staged.difference
    experts = None
    if any(layout.select(index, "experts") for index in range(len(layout))):
        both = attached(artifact, task, Adapter.having(Lora(rank=4, targets=("auto", "experts"))))
        experts = peft_apart(both, directory, task, folder / f"{task}-experts").exact
    return found.exact, staged.exact, top.anatomy.cut > 0 or last == 0, experts


if __name__ == "__main__":
    main()
