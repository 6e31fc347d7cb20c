"""One real training step on this device: what calibrates the cost model (``fedpeft.planner.calibrate``).

Synthetic tokens: cost depends on shapes alone, and no data is touched. Memory is the process's resident set,
so the probe belongs in a process that does nothing else.
"""

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedpeft.base import BaseArtifact, load_model
from fedpeft.data import EncodedDataset
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, attach, blocks_for
from fedpeft.planner import MeasuredStep, Workload, evaluation_batch
from fedpeft.planner.hardware import resident_bytes
from fedpeft.tasks.form import SEQUENCE, without_head
from fedpeft.tuning import ActivationCache, LocalPlan, evaluate, train

__all__ = ["measure_step"]

_LEARNING_RATE = 1e-4


def measure_step(artifact: BaseArtifact, workload: Workload, *, steps: int = 4) -> MeasuredStep:
    """Load the base, attach the adapter, train a few steps of ``workload`` on one thread.

    Args:
        artifact: the base.
        workload: what to train; its ``eval_examples`` are evaluated first, as in a round.
        steps: after the first, which warms up; the fastest counts.

    Raises:
        ConfigInvalid: the model cannot take the adapter.
    """
    torch.set_num_threads(1)
    labels = tuple(f"class {index}" for index in range(workload.classes))
    model = load_model(
        artifact,
        task=SEQUENCE if labels else without_head(tuple(artifact.manifest.tasks)),
        labels=labels,
        head_seed=0,
        residency=workload.residency,
    )
    union = attach(model, workload.adapter, seed=0)
    blocks = blocks_for(union.spec, methods=workload.methods, rank=workload.rank, head=workload.head)
    examples = _examples(workload, workload.cached_examples or 2 * workload.batch_size)
    loaded = _resident("VmRSS")
    _forget_peak()
    if workload.eval_examples:
        vocabulary = 0 if workload.classes else int(union.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        batch = evaluation_batch(length=workload.length, vocabulary=vocabulary)
        evaluate(union, _examples(workload, workload.eval_examples), limit=0, batch_size=batch)
    step_s = _train(union, examples, workload, dict.fromkeys(blocks, _LEARNING_RATE), steps)
    return MeasuredStep(loaded_bytes=loaded, peak_bytes=_resident("VmHWM"), step_s=step_s)


def _train(
    union: UnionAdapter, examples: EncodedDataset, workload: Workload, rates: Mapping[BlockId, float], steps: int
) -> float:
    """CPU seconds of the fastest step once everything that is cached has been computed."""
    cache, warm = None, 1
    if workload.cached_examples:
        whole = 1 << 40  # all of them
        cache = ActivationCache.for_training(examples, batch_size=workload.batch_size, seed=0, max_bytes=whole)
        warm = -(-len(examples) // workload.batch_size)
    plan = LocalPlan(
        steps=warm + steps,
        batch_size=workload.batch_size,
        optimizer="adamw",
        learning_rates=rates,
        weight_decay=0.0,
        max_grad_norm=1.0,
        micro_batch=workload.micro_batch,
        checkpointing=workload.checkpointing,
    )
    ends = [time.process_time()]
    train(union, examples, plan, seed=0, cache=cache, progress=lambda *_: ends.append(time.process_time()))
    spans = np.diff(ends)
    return float(spans[warm:].min())


def _examples(workload: Workload, count: int) -> EncodedDataset:
    draw = generator(0, "probe")
    ids = tuple(draw.integers(1, 1000, workload.length).astype(np.int32) for _ in range(count))
    if workload.classes:
        return EncodedDataset(input_ids=ids, labels=np.arange(count, dtype=np.int64) % workload.classes, truncated=0)
    return EncodedDataset(input_ids=ids, labels=tuple(row.astype(np.int64) for row in ids), truncated=0)


def _forget_peak() -> None:
    """Linux: the high-water mark starts anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes; elsewhere than on Linux the highest so far."""
    held = resident_bytes(field)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if held is None else held
