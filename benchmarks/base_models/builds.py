"""What building a base costs: peak memory of a large checkpoint, and CPU beside the build before ADR 0017.

Random bf16 Llama checkpoints with tied embeddings and a vocabulary of 256k are written shard by shard, built in a
process of their own, and deleted. Its anonymous memory is read from /proc every 10 ms (pages of mapped files are the
system's to take back). CPU a parameter is the difference of two checkpoints that differ in depth alone, so that imports
count for nothing, of this tree and of the last commit whose build read whole tensors, in turns. Linux.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedpeft.base import build

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "355da36"
VOCABULARY = 256 * 1024
COMPARED = (0.35, 0.5)  # 10^9 parameters of the two checkpoints whose difference is CPU a parameter


def measure_builds(billions: float) -> dict[str, Any]:
    """The peak of one nf4 build; from 10^8 parameters on, CPU a parameter beside the earlier build."""
    folder = Path(tempfile.mkdtemp())
    try:
        directory, parameters = write_llama(folder / "large", billions)
        note(f"a checkpoint of {parameters / 1e9:.2f}e9 parameters is written")
        large = built_apart(ROOT, directory, folder / "store")
        shutil.rmtree(directory)
        shutil.rmtree(folder / "store")
        found = {
            "build_parameters": parameters,
            "build_vocabulary": VOCABULARY,
            "build_peak_mb": round(large["peak_anonymous_mb"]),
            "build_cpu_s": round(large["cpu_s"], 1),
        }
        return found | compared(folder) if billions > 0.1 else found
    finally:
        shutil.rmtree(folder)


def compared(folder: Path) -> dict[str, Any]:
    """CPU seconds for 10^9 parameters now and before, of the same files; the artifacts are the same to the bit."""
    before = folder / "before"
    tree = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(tree)) as archive:
        archive.extractall(before, filter="data")
    spent: dict[Path, list[float]] = {ROOT: [], before: []}
    sizes, weights = [], []
    for billions in COMPARED:
        directory, parameters = write_llama(folder / f"llama-{billions}", billions)
        sizes.append(parameters)
        for tree_root, times in spent.items():
            one = built_apart(tree_root, directory, folder / "store")
            times.append(one["cpu_s"])
            weights.append(one["weights"])
            shutil.rmtree(folder / "store")
        shutil.rmtree(directory)
    now, then = (1e9 * (times[1] - times[0]) / (sizes[1] - sizes[0]) for times in spent.values())
    note(f"{now:.1f} CPU seconds for 1e9 parameters, {then:.1f} at {BEFORE}")
    return {
        "nf4_cpu_s_per_billion": round(now, 1),
        "nf4_cpu_s_per_billion_before": round(then, 1),
        "nf4_cpu_ratio": round(now / then, 2),
        "nf4_same_bytes": weights[0] == weights[1] and weights[2] == weights[3],
        "before": BEFORE,
    }


def write_llama(directory: Path, billions: float) -> tuple[Path, int]:
    """A random bf16 Llama with tied embeddings, one shard a layer."""
    hidden = 3072 if billions > 1 else 1024 if billions > 0.1 else 128
    inner, heads = hidden * 8 // 3 // 64 * 64, hidden // 64
    layer = {"q": (hidden, hidden), "k": (hidden // 2, hidden), "v": (hidden // 2, hidden), "o": (hidden, hidden)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    each = sum(a * b for a, b in (*layer.values(), *mlp.values())) + 2 * hidden
    layers = max(1, round((billions * 1e9 - VOCABULARY * hidden) / each))
    from fedpeft.testing.zoo import save_tokenizer  # the earlier tree, which builds, has none

    save_tokenizer(directory)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads // 2,
        "vocab_size": VOCABULARY, "tie_word_embeddings": True, "max_position_embeddings": 2048, "head_dim": 64,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    places: dict[str, str] = {}

    def save(file: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        tensors = {name: torch.randn(shape, dtype=torch.bfloat16) * 0.02 for name, shape in shapes.items()}
        save_file(tensors, directory / file)
        places.update(dict.fromkeys(shapes, file))

    save("embed.safetensors", {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)})
    for number in range(layers):
        stem = f"model.layers.{number}"
        shapes: dict[str, tuple[int, ...]] = {
            f"{stem}.self_attn.{key}_proj.weight": size for key, size in layer.items()
        }
        shapes |= {f"{stem}.mlp.{key}_proj.weight": size for key, size in mlp.items()}
        shapes |= {f"{stem}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        save(f"layer-{number:03}.safetensors", shapes)
    index = json.dumps({"weight_map": places})
    (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return directory, VOCABULARY * hidden + hidden + layers * each


def built_apart(tree: Path, directory: Path, store: Path) -> dict[str, Any]:
    """Build nf4 in a process of its own, by the code of one tree."""
    paths = os.pathsep.join(str(tree / part) for part in ("", "server", "clients", "simulations"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(directory), str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def build_here(model: str, store: str) -> None:
    """Build, and print what it took."""
    torch.set_num_threads(1)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous_mb())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    artifact = build(model, quantize="nf4", store=Path(store))
    done.set()
    watcher.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    weights = next(file.sha256 for file in artifact.manifest.files if file.name == "model.safetensors")
    print(json.dumps({"peak_anonymous_mb": peak[0], "cpu_s": used.ru_utime + used.ru_stime, "weights": weights}))


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("Expected RssAnon in /proc/self/status; this runs on Linux.")


def note(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    build_here(*sys.argv[1:])
