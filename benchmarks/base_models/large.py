"""A base of 1.1e9 parameters: a LoRA step beside transformers with peft, and three devices in one process.

A random Llama of TinyLlama's shape. Ours is packed in NF4 (``performance.residency = "quantized"``); the peer is
transformers' model in float32 with peft's LoRA. CPU seconds are of one thread, the fastest of a few steps on both
sides; memory is a process's highest resident set. Each measurement is a process of its own. Linux.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["measure_large"]

SHAPE = {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "intermediate_size": 5632} | {
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 512,
}
SMALL = SHAPE | {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704, "vocab_size": 8_000}
BATCH, LENGTH, STEPS = 2, 128, 4
WORDS = ("the", "red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "often", "never", "home")


def measure_large(*, small: bool = False) -> dict[str, Any]:
    """The bars of a large base.

    Args:
        small: a base of a few million parameters, to try the measurement itself.

    Returns:
        ``large_step_ratio`` and ``large_memory_ratio`` (ours over theirs), ``large_three_devices_mib``, and what
        they were computed from.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        parameters = apart("save", folder, small)["parameters"]
        digest = apart("build", folder, small)["digest"]
        ours, theirs = apart("ours", folder, small), apart("theirs", folder, small)
        three = three_devices(folder, digest)
    return {
        "large_parameters": parameters,
        "large_ours": ours,
        "large_theirs": theirs,
        "large_step_ratio": round(ours["step_s"] / theirs["step_s"], 3),
        "large_memory_ratio": round(ours["peak_mib"] / theirs["peak_mib"], 3),
        "large_three_devices_mib": three,
    }


def apart(what: str, folder: Path, small: bool) -> dict[str, Any]:
    """One step of it in a process of its own."""
    command = [sys.executable, __file__, what, str(folder), "small" if small else "large"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {found}", file=sys.stderr, flush=True)
    return found


def environment() -> dict[str, str]:
    """One thread; the benchmarks' folder is on the path."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def three_devices(folder: Path, digest: str) -> int:
    """MiB of the process that simulates three devices over one packed base, for a round."""
    rows = [
        {"text": " ".join(WORDS[(row + at) % len(WORDS)] for at in range(40)), "site": f"s{row % 3}"}
        for row in range(36)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "run.toml").write_text(
        f"""
[base]
model = "{digest}"
quantize = "nf4"
[task]
kind = "causal-lm"
max_length = 48
[data]
source = "rows.jsonl"
partition = {{ by = "column", column = "site" }}
[adapter]
lora = {{ rank = 8 }}
[train]
local_steps = 1
batch_size = 2
[rounds]
count = 1
min_devices = 3
eval_examples = 2
[performance]
residency = "quantized"
engine = "local"
workers = 1
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "fedpeft", "simulate", "run.toml", "--store", str(folder / "store")]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, resident_bytes(watched))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"fedpeft simulate ended with {process.returncode}")
    return peak // 2**20


def resident_bytes(process: psutil.Process) -> int:
    """Of a process and all below it; 0 for what has gone meanwhile."""
    found = 0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found += one.memory_info().rss
    return found


def save(folder: Path, shape: dict[str, int]) -> dict[str, Any]:
    """The checkpoint, in bfloat16, and a tokenizer."""
    import torch

    from fedpeft.testing.zoo import save_model

    saved = save_model("llama", folder / "model", dtype=torch.bfloat16, tie_word_embeddings=False, **shape)
    size = sum(path.stat().st_size for path in saved.glob("*.safetensors"))
    return {"parameters": size // 2}


def build(folder: Path) -> dict[str, Any]:
    """The artifact."""
    from fedpeft.base import build as build_base

    return {"digest": build_base(str(folder / "model"), quantize="nf4", store=folder / "store").digest}


def ours(folder: Path) -> dict[str, Any]:
    """Steps of the product's own loop on the packed base."""
    from fedpeft.base import build as build_base
    from fedpeft.config.model import Adapter, Lora
    from fedpeft.planner import Workload
    from fedpeft_client.training.measure_step import measure_step

    artifact = build_base(str(folder / "model"), quantize="nf4", store=folder / "store")
    workload = Workload(
        adapter=Adapter(lora=Lora(rank=8, tiers=(8,))), methods=("lora",), classes=0,
        batch_size=BATCH, length=LENGTH, residency="quantized",
    )  # fmt: skip
    measured = measure_step(artifact, workload, steps=STEPS)
    return {"step_s": measured.step_s, "peak_mib": measured.peak_bytes / 2**20}


def theirs(folder: Path) -> dict[str, Any]:
    """Steps as peft's manual has them, on the same tokens."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    wrapped.train()
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = torch.randint(1, 200, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(STEPS + 1):
        began = time.process_time()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_s": min(times[1:]), "peak_mib": peak}


def main(what: str, folder: Path, shape: dict[str, int]) -> None:
    """One measurement in this process."""
    found = save(folder, shape) if what == "save" else {"build": build, "ours": ours, "theirs": theirs}[what](folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), SMALL if sys.argv[3] == "small" else SHAPE)
