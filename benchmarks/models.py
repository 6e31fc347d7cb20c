"""Base models: how many of the zoo are taken, whether the base is what transformers loads, and what a build costs.

    python benchmarks/models.py [--quick] [--billions 3.2] [--out FILE]

Every row of `fedpeft/testing/zoo.json` is built from its files as published and compared with what
`from_pretrained` computes; LoRA on it with plain peft, and the forward pass in stages with the whole one. Then
random Llama checkpoints with a vocabulary of 256k are built in a process of their own, whose anonymous memory
is read from /proc every 10 ms (pages of mapped files are the system's to take back); CPU seconds are the
process's, its start included and named. Progress goes to stderr, one JSON object to stdout. Linux.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedpeft.base import BaseArtifact, build, load_model
from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import FedpeftError
from fedpeft.testing.zoo import NAMES, ROWS, logits_apart, save_model, save_tokenizer, transformers_model
from fedpeft.testing.zoo_methods import attached, peft_apart, stages_apart

MIB = 2**20
VOCABULARY = 256 * 1024
NF4_CPU_S_A_BILLION_BEFORE = 44.9  # docs/adr/0017: of the build that read whole tensors and searched the 16 codes
CHILD = "--build"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Every eighth model, small checkpoints, no CPU ratio.")
    parser.add_argument("--billions", type=float, default=0.4, help="Parameters of the large checkpoint, in 10^9.")
    parser.add_argument("--out", type=Path, help="Write the JSON here, too.")
    parser.add_argument(CHILD, nargs=3, metavar=("MODEL", "SCHEME", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build_here(*options.build)
        return
    figures: dict[str, object] = {"quick": options.quick}
    figures |= compare(NAMES[::8] if options.quick else NAMES)
    figures |= measure_builds(0.06 if options.quick else options.billions)
    text = json.dumps(figures, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def compare(names: tuple[str, ...]) -> dict[str, object]:
    """Build each model and compare it, for each task that it is offered for, with transformers' own."""
    accepted, wrong, refused = [], {}, {}
    lora_exact, staged_exact, whole_only = 0, 0, []
    for name in names:
        folder = Path(tempfile.mkdtemp())
        try:
            directory = save_model(name, folder / name)
            artifact = build(str(directory), quantize="none", store=folder / "store")
            for task, entry in artifact.manifest.tasks.items():
                if task == "classify" and ROWS[name]["kind"] == "multimodal":
                    continue  # transformers has no such class for the wrapper
                labels = ("bad", "good") if task == "classify" else ()
                model = load_model(artifact, task=task, labels=labels, head_seed=1)
                head = {key: value for key, value in model.state_dict().items() if key in entry.head}
                theirs = transformers_model(directory, task, head, model.config.pad_token_id)
                apart, size = logits_apart(model, theirs, task)
                if apart > 2e-5 * max(1.0, size):
                    wrong[f"{name} {task}"] = apart
            adapted, staged, cut = adapt(name, artifact, directory, folder)
            lora_exact, staged_exact = lora_exact + adapted, staged_exact + staged
            whole_only += [] if cut else [name]
            accepted.append(name)
        except FedpeftError as error:
            refused[name] = str(error).splitlines()[0]
        finally:
            shutil.rmtree(folder)
        note(f"{name}: {'refused' if name in refused else 'taken'}")
    return {
        "models": len(names),
        "accepted": len(accepted),
        "silent_wrong": len(wrong),
        "lora_exact": lora_exact,
        "staged_exact": staged_exact,
        "whole_only": whole_only,
        "wrong": wrong,
        "refused": refused,
        "kinds": sorted({str(ROWS[name]["kind"]) for name in names}),
    }


def adapt(name: str, artifact: BaseArtifact, directory: Path, folder: Path) -> tuple[bool, bool, bool]:
    """LoRA on a base: whether plain peft computes the same, whether the stages do, and whether they can be cut.

    A multimodal wrapper's adapter has the names of its language model, which peft does not look for in the wrapper.
    """
    exact, staged, cut = [], [], []
    for task in artifact.manifest.tasks:
        if task == "classify" and ROWS[name]["kind"] == "multimodal":
            continue
        union = attached(artifact, task, Adapter.having(Lora(rank=4)))
        if ROWS[name]["kind"] != "multimodal":
            exact.append(peft_apart(union, directory, task, folder / task).exact)
        layout = union.anatomy.layout
        last = max(index for index in range(len(layout)) if layout.select(index, "auto"))
        top = attached(artifact, task, Adapter.having(Lora(rank=4, layers=(last, len(layout) - 1))))
        staged.append(stages_apart(top).exact)
        cut.append(top.anatomy.cut > 0 or last == 0)
    return bool(exact) and all(exact), all(staged), all(cut)


def measure_builds(billions: float) -> dict[str, object]:
    """nf4 builds of two checkpoints that differ in depth alone: peak memory; CPU a parameter from the difference."""
    folder = Path(tempfile.mkdtemp())
    try:
        rows = []
        for share in (0.75, 1.0):
            directory, parameters = write_llama(folder / f"llama-{share}", billions * share)
            note(f"a checkpoint of {parameters / 1e9:.2f}e9 parameters is written")
            rows.append((parameters, built_apart(directory, "nf4", folder / "store")))
            shutil.rmtree(directory)
        (small, first), (large, second) = rows
        per_billion = (second["cpu_s"] - first["cpu_s"]) / (large - small) * 1e9
        return (
            {
                "build_parameters": large,
                "build_vocabulary": VOCABULARY,
                "build_peak_mb": round(second["peak_anonymous_mb"]),
                "build_peak_mb_at_three_quarters": round(first["peak_anonymous_mb"]),
                "build_cpu_s": round(second["cpu_s"], 1),
                "nf4_cpu_s_per_billion": round(per_billion, 1),
                "nf4_cpu_ratio": round(per_billion / NF4_CPU_S_A_BILLION_BEFORE, 2),
            }
            if large > 1e8
            else {"build_parameters": large, "build_peak_mb": round(second["peak_anonymous_mb"])}
        )
    finally:
        shutil.rmtree(folder)


def write_llama(directory: Path, billions: float) -> tuple[Path, int]:
    """A random bf16 Llama with tied embeddings, one shard a layer."""
    hidden = 3072 if billions > 1 else 1024 if billions > 0.1 else 128
    inner, heads = hidden * 8 // 3 // 64 * 64, hidden // 64
    layer = {"q": (hidden, hidden), "k": (hidden // 2, hidden), "v": (hidden // 2, hidden), "o": (hidden, hidden)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    each = sum(a * b for a, b in (*layer.values(), *mlp.values())) + 2 * hidden
    layers = max(1, round((billions * 1e9 - VOCABULARY * hidden) / each))
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


def built_apart(directory: Path, scheme: str, store: Path) -> dict[str, float]:
    """Build in a process of its own."""
    command = [sys.executable, __file__, CHILD, str(directory), scheme, str(store)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def build_here(model: str, scheme: str, store: str) -> None:
    """Build, and print what it took."""
    torch.set_num_threads(1)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous_mb())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    build(model, quantize=scheme, store=Path(store))
    done.set()
    watcher.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"peak_anonymous_mb": peak[0], "cpu_s": used.ru_utime + used.ru_stime}))


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
    main()
