"""The measurements behind benchmarks/methods.py, one a process."""

import itertools
import json
import os
import statistics
import time
import typing
from collections.abc import Callable

import numpy as np
import torch
from one_method.common import (
    SMOLLM,
    Settings,
    built,
    data_of,
    even,
    full_training,
    loaded,
    peak_mb,
    scored,
    step_times,
)
from torch import nn

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.base import ArtifactStore, default_store
from fedpeft.config.model import Adapter, Lora, MethodName
from fedpeft.data import EncodedDataset
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach, due_blocks
from fedpeft.planner import REFERENCE, Workload, estimate, shape_of
from fedpeft.planner.placement import present_methods
from fedpeft.testing.models import class_examples, tiny_bert, tiny_llama, token_examples
from fedpeft.testing.plans import plan_for, trainable
from fedpeft.tuning import ActivationCache, evaluate, train

ROUNDS = 4


def measure(settings: Settings) -> Settings:
    """One configuration, in this process."""
    torch.set_num_threads(1)
    what: dict[str, Callable[[Settings], Settings]] = {
        "methods": every_method,
        "trainer": against_trainer,
        "memory": peak_of_training,
        "cache": cached_against_all,
        "partly": cached_partly,
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
        if method == "fusion":
            union.load(with_earlier_adapters(union))
        problem = trains(union, examples, rounds=3)
        if problem:
            failed[name] = problem
        else:
            passed.append(name)
    return {"passed": len(passed), "failed_methods": failed, "efficiency": efficiency()}


def with_earlier_adapters(union: UnionAdapter) -> AdapterState:
    """AdapterFusion's start over two adapters that say something: over silent ones nothing is learnt.

    Softly: over loud ones the attention of a model this small saturates, and its gradient is zero.
    """
    state, draw = union.initial_state(), generator(0, "earlier adapters")
    sources = [block.block_id for block in union.spec.blocks if block.block_id.startswith("fusion.")]
    return state.replace(
        {one: (state[one] + 0.1 * draw.standard_normal(state[one].shape)).astype(np.float32) for one in sources}
    )


def trains(union: UnionAdapter, examples: EncodedDataset, *, rounds: int) -> str:
    """Empty when what is due moves, nothing else does, and the loss falls."""
    first = evaluate(union, examples, limit=0, batch_size=32).loss_sum
    for round_id in range(1, rounds + 1):
        due = due_blocks(union.spec, union.adapter, round_id)
        before = {name: parameter.detach().clone() for name, parameter in union.model.named_parameters()}
        train(union, examples, plan_for(due, steps=6, batch_size=8, rate=0.02), seed=0, first_step=6 * (round_id - 1))
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
    ours = step_times(union, examples, plan_for(trainable(union), steps=steps + 1, batch_size=8, rate=1e-3), None)[1:]
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


def peak_of_training(settings: Settings) -> Settings:
    """SmolLM2 8 x 128, three steps (with a cache: two epochs of two): this process's peak memory."""
    artifact = built("smollm", settings.get("quantize", ""))
    model = loaded(artifact, (), settings.get("residency", "dense"))
    examples, batch, steps = even(128), int(settings.get("batch", 8)), int(settings.get("steps", 3))
    if settings["adapter"] is None:
        return full_training(model, examples, None, steps=steps, batch_size=batch, rate=1e-4)
    adapter = Adapter.model_validate_json(json.dumps(settings["adapter"]))
    union = attach(model, adapter, seed=0)
    cached = bool(settings.get("cached"))
    cache = ActivationCache.for_training(examples, batch_size=batch, seed=0, max_bytes=2**30) if cached else None
    again = bool(settings.get("checkpointing"))
    plan = plan_for(trainable(union), steps=steps, batch_size=batch, rate=1e-3, checkpointing=again)
    times = step_times(union, examples, plan, cache)
    return {"step_s": min(times[1:]), "peak_mb": peak_mb()}


def predicted_mb(settings: Settings) -> float:
    """What the planner says of a configuration of ``peak_of_training``."""
    adapter = Adapter.model_validate_json(json.dumps(settings["adapter"]))
    shape = shape_of(built("smollm", settings.get("quantize", "")))
    workload = Workload(
        adapter=adapter,
        methods=present_methods(shape, adapter),
        classes=0,
        batch_size=int(settings.get("batch", 8)),
        length=128,
        residency=settings.get("residency", "dense"),
        cached_examples=16 if settings.get("cached") else 0,
        checkpointing=bool(settings.get("checkpointing")),
    )
    return estimate(shape, workload, REFERENCE).peak_bytes / 2**20


def table_rows(settings: Settings, runs: typing.Mapping[str, typing.Any]) -> typing.Iterator[tuple[str, Settings]]:
    """Each adapter of ``runs`` trained on one base and its data; None is full fine-tuning.

    Every one in a child of this process, which has loaded the base and trained nothing: the child's peak memory is its
    own and the base's.
    """
    torch.set_num_threads(1)
    artifact = built(settings["base"], settings["quantize"])
    examples, held_out, labels = data_of(settings, artifact)
    model = loaded(artifact, labels, settings["residency"])
    for name, adapter in runs.items():
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                found = one_row(model, examples, held_out, settings, adapter)
            except Exception as failure:
                found = {"failed": f"{type(failure).__name__}: {failure}"}
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                pipe.write(json.dumps(found))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        yield name, json.loads(said) if said else {"failed": "the process died"}


def one_row(
    model: nn.Module,
    examples: EncodedDataset,
    held_out: EncodedDataset,
    settings: Settings,
    adapter_json: Settings | None,
) -> Settings:
    """Train and score one adapter, or every parameter."""
    steps, batch = int(settings["steps"]), int(settings["batch"])
    if adapter_json is None:
        return full_training(model, examples, held_out, steps=steps, batch_size=batch, rate=2e-4)
    adapter = Adapter.model_validate_json(json.dumps(adapter_json))
    union = attach(model, adapter, seed=0)
    times: list[float] = []
    due: frozenset[BlockId] = frozenset()
    for round_id in range(1, ROUNDS + 1):
        due = due_blocks(union.spec, adapter, round_id)
        plan = plan_for(due, steps=steps // ROUNDS, batch_size=batch, rate=3e-3)
        times += step_times(union, examples, plan, None, first_step=(round_id - 1) * plan.steps)
        union.load(between_rounds(union.state(), adapter, round_id))
    trained, peak = sum(union.spec[block].size for block in due), peak_mb()
    timing = {"step_s": statistics.median(times[len(times) // 2 :]), "peak_mb": peak}
    return timing | scored(union, held_out) | {"trained": trained, "bytes_up": 4 * trained}


def cached_against_all(_: Settings) -> Settings:
    """SmolLM2 8 x 128, LoRA q,v r=8: the top six layers over cached activations against all layers."""
    artifact, few = built("smollm", ""), even(128)
    found: Settings = {}
    for name, layers, cached in (("all", "all", False), ("top", 6, False), ("cached", 6, True)):
        union = attach(loaded(artifact, (), "dense"), Adapter(layers=layers, lora=Lora(rank=8, tiers=(8,))), seed=0)
        cache = ActivationCache.for_training(few, batch_size=8, seed=0, max_bytes=2**30) if cached else None
        losses: list[float] = []
        plan = plan_for(trainable(union), steps=5, batch_size=8, rate=1e-3)
        times = step_times(union, few, plan, cache, losses=losses)
        found[name] = {"step_s": statistics.median(times[2:]), "losses": losses}
    apart = [abs(a - b) for a, b in zip(found["top"]["losses"], found["cached"]["losses"], strict=True)]
    ratio = found["cached"]["step_s"] / found["all"]["step_s"]
    return found | {"ratio": round(ratio, 3), "loss_difference": max(apart)}


def cached_partly(_: Settings) -> Settings:
    """MiniLM 8 x 128: CPU seconds of a step with and without cached activations, where some layers have no adapter."""
    artifact, labels, count = built("minilm", "int8"), ("a", "b", "c"), 8
    draw = generator(0, "partly")
    ids = tuple(draw.integers(1000, 20000, 128).astype(np.int32) for _ in range(8 * count))
    examples = EncodedDataset(input_ids=ids, labels=np.arange(len(ids), dtype=np.int64) % 3, truncated=0)
    found: Settings = {}
    upper = {"bitfit": {"layers": [3, 4]}, "lora": {"rank": 8, "layers": [5, 5]}}  # of layers 0 to 5
    for name, settings in {"the head alone": {}, "hierarchical": upper}.items():
        times, states = dict[bool, float](), []
        for cached in (False, True):
            union = attach(loaded(artifact, labels, "dense"), Adapter.model_validate_json(json.dumps(settings)), seed=0)
            cache = ActivationCache.for_training(examples, batch_size=8, seed=0, max_bytes=2**30) if cached else None
            plan = plan_for(trainable(union), steps=3 * count, batch_size=8, rate=1e-3)
            # The first epoch fills the cache.
            times[cached] = statistics.median(step_times(union, examples, plan, cache)[count + 1 :])
            states.append(union.state())
        apart = max(float(abs(states[0][block] - states[1][block]).max()) for block in states[0])
        ratio = round(times[True] / times[False], 3)
        found[name] = {"step_s": times[False], "cached_step_s": times[True], "ratio": ratio, "difference": apart}
    return found
