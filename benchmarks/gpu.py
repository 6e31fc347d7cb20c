"""Training on a CUDA device: LoRA steps beside transformers with peft and bitsandbytes, on random Llamas of 0.5B to 8B.

    python benchmarks/gpu.py [--minutes 8] [--sizes 0.5 1.1 3 8] [--out FILE]
    python benchmarks/gpu.py --device cpu --sizes tiny      (a rehearsal where no GPU is)

First the tests that want a GPU (``tests/tuning/test_accelerator.py``), then cells: a size times an arm, each in a
process of its own, written to FILE as soon as it is there. What does not begin within --minutes is listed as not run,
and so is an arm whose package (bitsandbytes) is missing.

Arms: ``ours`` (base in float32, products in bfloat16: what ``performance.accelerator = "cuda"`` does), ``ours nf4``
(``base.residency = "quantized"``), ``ours nf4 paged`` (``train.optimizer = "paged-adamw"``); ``peft`` (base in
bfloat16), ``peft nf4`` (bitsandbytes' Linear4bit). All: LoRA of rank 8 on q and v, 8 x 512 tokens a step, AdamW,
gradients clipped. Times are medians by the clock with the device synchronised; memory is the allocator's peak after
the model is loaded. The last line is JSON: ``tests``, ``cells``, ``ratios``, ``not_run``. Never run on a GPU so far.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedpeft.base.quantize import quantize
from fedpeft.base.residency import PackedWeight, QuantizedLinear
from fedpeft.config.model import Adapter, Lora
from fedpeft.data import EncodedDataset
from fedpeft.methods import attach
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import train
from fedpeft.tuning.accelerator import chosen_device

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "results" / "gpu.json"
BATCH, STEPS, WARM = 8, 12, 4
SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    | {"num_key_value_heads": 2, "vocab_size": 512},
    "0.5": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    | {"num_key_value_heads": 8, "vocab_size": 64_000},
    "1.1": {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "intermediate_size": 5632}
    | {"num_key_value_heads": 4, "vocab_size": 32_000},
    "3": {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "intermediate_size": 8192}
    | {"num_key_value_heads": 8, "vocab_size": 128_256},
    "8": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14_336}
    | {"num_key_value_heads": 8, "vocab_size": 128_256},
}
ARMS = ("ours", "peft", "ours nf4", "peft nf4", "ours nf4 paged")
RATIOS = {"bf16": ("ours", "peft"), "nf4": ("ours nf4", "peft nf4")}
WITHOUT = {"peft nf4": "bitsandbytes", "ours nf4 paged": "bitsandbytes", "peft": "peft"}


def main() -> None:
    """Tests, then every cell for which there is time; print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["0.5", "1.1", "3", "8"], metavar="10^9")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--minutes", type=float, default=8.0, help="No cell begins after that.")
    parser.add_argument("--out", type=Path, help=f"Where cells are kept ({OUT.name}; nowhere on a CPU).")
    parser.add_argument("--one", metavar="SIZE/ARM", help="Measure one cell in this process.")
    asked = parser.parse_args()
    device = chosen_device(asked.device)  # before anything else: says what is missing
    if asked.one:
        print(json.dumps(cell(*asked.one.split("/"), device)))
        return
    out = asked.out or (OUT if asked.device == "cuda" else None)
    end = time.monotonic() + 60 * asked.minutes
    found: dict[str, Any] = {"machine": machine(device), "tests": tests(), "cells": {}, "not_run": {}}
    for size in asked.sizes:
        for arm in asked.arms:
            name, missing = f"{size}/{arm}", WITHOUT.get(arm, "")
            left_s = end - time.monotonic()
            if missing and importlib.util.find_spec(missing) is None:
                found["not_run"][name] = f"{missing} is not installed"
            elif left_s <= 0:
                found["not_run"][name] = "no time was left"
            else:
                measured = apart(name, asked.device, left_s)
                found["cells" if "step_s" in measured else "not_run"][name] = measured
                print(f"{name}: {measured}", file=sys.stderr, flush=True)
            keep(found, out)
    print(json.dumps(found))


def keep(found: dict[str, Any], out: Path | None) -> None:
    """With the ratios of what is there."""
    cells = found["cells"]
    found["ratios"] = {
        f"{size} {kind} {figure}": round(cells[f"{size}/{ours}"][figure] / cells[f"{size}/{theirs}"][figure], 3)
        for size in SHAPES
        for kind, (ours, theirs) in RATIOS.items()
        for figure in ("step_s", "peak_mib")
        if cells.get(f"{size}/{ours}", {}).get(figure) and cells.get(f"{size}/{theirs}", {}).get(figure)
    }
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def machine(device: torch.device) -> dict[str, str]:
    """What it was measured on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, a rehearsal: the figures say nothing"
    return {"device": name, "torch": torch.__version__, "cuda": str(torch.version.cuda)}


def tests() -> str:
    """The last line of pytest on what wants a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tuning/test_accelerator.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    said = [line for line in done.stdout.splitlines() if line.strip()]
    return f"exit {done.returncode}: {said[-1] if said else done.stderr[-300:]}"


def apart(name: str, device: str, left_s: float) -> dict[str, Any]:
    """One cell in a process of its own, which may fail or run out of memory."""
    command = [sys.executable, __file__, "--device", device, "--one", name]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=max(30.0, left_s)
        )
    except subprocess.TimeoutExpired:
        return {"failed": "no time was left"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cell(size: str, arm: str, device: torch.device) -> dict[str, Any]:
    """Step time, tokens a second and peak memory of one arm."""
    torch.manual_seed(0)
    length = 32 if size == "tiny" else 512
    config = LlamaConfig(**SHAPES[size], max_position_embeddings=length, attn_implementation="sdpa")
    rows = np.random.default_rng(0).integers(1, config.vocab_size, (BATCH, length)).astype(np.int32)
    times = (ours if arm.startswith("ours") else peer)(config, rows, arm, device)
    step_s = statistics.median(times[WARM:])
    found: dict[str, Any] = {"step_s": round(step_s, 5), "tokens_per_s": round(BATCH * length / step_s)}
    if device.type == "cuda":
        found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def ours(config: LlamaConfig, rows: np.ndarray[Any, np.dtype[np.int32]], arm: str, device: torch.device) -> list[float]:
    """Seconds of each step of fedpeft's own loop."""
    with device:
        model = LlamaForCausalLM(config).requires_grad_(requires_grad=False).eval()
    if "nf4" in arm:
        pack_alike(model)
    union = attach(model, Adapter(lora=Lora(rank=8, tiers=(8,), targets=("q", "v"))), seed=0)
    union.model.to(device)
    examples = EncodedDataset(input_ids=tuple(rows), labels=tuple(row.astype(np.int64) for row in rows), truncated=0)
    optimizer = "paged-adamw" if "paged" in arm else "adamw"
    plan = plan_for(trainable(union), steps=WARM + STEPS, batch_size=BATCH, rate=1e-4, optimizer=optimizer)
    watch = Watch(device)
    train(union, examples, plan, seed=0, progress=lambda *_: watch())
    return watch.spans


def pack_alike(model: nn.Module) -> None:
    """Every linear layer of the decoder in NF4; matrices of one shape share their codes' values, which cost nothing."""
    packed: dict[tuple[int, ...], Mapping[str, torch.Tensor]] = {}
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            shape, device = tuple(module.weight.shape), module.weight.device
            if shape not in packed:
                packed[shape] = quantize(module.weight.cpu(), "nf4")
            parts = {name: part.to(device, copy=True) for name, part in packed[shape].items()}
            model.set_submodule(path, QuantizedLinear(PackedWeight(parts, "nf4", shape), module.bias))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peer(config: LlamaConfig, rows: np.ndarray[Any, np.dtype[np.int32]], arm: str, device: torch.device) -> list[float]:
    """Seconds of each step of transformers and peft, in the loop that their manuals show."""
    from peft import LoraConfig, get_peft_model

    with device, in_bfloat16():
        model = LlamaForCausalLM(config)
    if "nf4" in arm:
        pack_as_bitsandbytes(model, device)
    wrapped = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    wrapped.train()
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = torch.from_numpy(rows.astype(np.int64)).to(device)
    watch = Watch(device)
    for _ in range(WARM + STEPS):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch()
    return watch.spans


def pack_as_bitsandbytes(model: nn.Module, device: torch.device) -> None:
    """Every linear layer of the decoder as bitsandbytes' Linear4bit, which packs when it moves to the device."""
    import bitsandbytes

    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            layer = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            layer.weight = bitsandbytes.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            model.set_submodule(path, layer.to(device))
    torch.cuda.empty_cache()


@contextlib.contextmanager
def in_bfloat16() -> Any:
    """New parameters are bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Watch:
    """The time of each step, the device's work included; memory counts from its making."""

    def __init__(self, device: torch.device) -> None:
        self._wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        self.spans: list[float] = []
        self._wait()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._last = time.perf_counter()

    def __call__(self) -> None:
        """A step ended."""
        self._wait()
        now = time.perf_counter()
        self.spans.append(now - self._last)
        self._last = now


if __name__ == "__main__":
    main()
