"""Local training: one plain loop.

The device's blocks are trained on its examples for a fixed number of steps, with a fresh optimizer each
round. Nothing here draws a random number: the batches come from a stateless stream, dropout is 0, and what a method
draws (``fedpeft.grafting.step_hooks``) follows from seed and step, so the result depends on the arguments alone,
whatever else the process or its other threads do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.adapter import unflatten
from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import RunFailed
from fedpeft.grafting.step_hooks import SteppedPart
from fedpeft.ids import BlockId
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.accelerator import paged_adamw
from fedpeft.tuning.batches import training_stream
from fedpeft.tuning.cache import HiddenSource
from fedpeft.tuning.master_weights import MasterWeights
from fedpeft.tuning.objective import Objective

__all__ = ["LocalPlan", "TrainOutcome", "make_optimizer", "train"]

Progress = Callable[[int, float], None]
"""Called after each step with (steps done, the step's loss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """What a device does in one round.

    Args:
        steps: optimizer steps.
        batch_size: examples per step.
        optimizer: ``adamw`` or ``sgd``, without memory of the last round; ``paged-adamw``: with states of 8 bits in
            paged memory on CUDA, as ``adamw`` on a CPU.
        learning_rates: one for each block that is trained; the other blocks are applied and left alone.
        weight_decay: decoupled (adamw) or L2 (sgd), on the trained blocks.
        max_grad_norm: the gradient over all trained blocks is scaled down to this L2 norm.
        micro_batch: at most so many examples pass through the model at once, their gradients added up; 0: all of a
            step. The same step but for rounding, in less memory.
        checkpointing: layers are computed again in the backward pass (``SplitForward``).
        proximal_mu: FedProx (Li 2020): mu (x - x at the start) is added to the gradient.
    """

    steps: int
    batch_size: int
    optimizer: Literal["adamw", "paged-adamw", "sgd"]
    learning_rates: Mapping[BlockId, float]
    weight_decay: float
    max_grad_norm: float
    micro_batch: int = 0
    checkpointing: bool = False
    proximal_mu: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """What came of it. The trained values are in the adapter.

    Args:
        mean_loss: over the steps, each before its own update.
        examples_seen: counted as often as they were taken.
        steps: optimizer steps taken.
    """

    mean_loss: float
    examples_seen: int
    steps: int


def train(
    union: UnionAdapter,
    examples: EncodedDataset,
    plan: LocalPlan,
    *,
    seed: int,
    first_step: int = 0,
    cache: HiddenSource | None = None,
    logit_offset: Tensor | None = None,
    correction: Mapping[BlockId, npt.NDArray[np.float32]] | None = None,
    progress: Progress | None = None,
) -> TrainOutcome:
    """Train the plan's blocks in place.

    Args:
        union: the model with its adapter, holding the global state.
        examples: this device's.
        plan: what to do.
        seed: determines the stream of batches; the same in every round of a run.
        first_step: where in the stream this round begins: how many steps earlier rounds took.
        cache: of these examples (``ActivationCache.for_training``); without effect when every layer adapts.
        logit_offset: (classes,) added to the logits of the loss, never to those of an evaluation (``label_offset``).
        correction: SCAFFOLD (Karimireddy 2020): added to each block's gradient after clipping, (P,) a block.
        progress: called after each step.

    Raises:
        SpecMismatch: a block is unknown or frozen.
        DataInvalid: no examples.
        RunFailed: the loss is not finite.
    """
    union.train_only(plan.learning_rates.keys())
    objective = Objective(
        union,
        examples,
        cache=cache,
        logit_offset=logit_offset,
        micro_batch=plan.micro_batch,
        checkpointing=plan.checkpointing,
    )
    stream = training_stream(examples, batch_size=plan.batch_size, seed=seed)
    # In the specification's order, whatever the mapping's: sums of gradient norms round by order.
    masters = MasterWeights(
        {
            block.block_id: list(union.parameters(block.block_id).values())
            for block in union.spec.blocks
            if block.block_id in plan.learning_rates
        }
    )
    trained = masters.blocks
    optimizer = make_optimizer(trained, plan)
    starts = {p: p.detach().clone() for p in chain.from_iterable(trained.values())} if plan.proximal_mu else {}
    corrections = _corrections(union, trained, correction or {})
    stepped = [module for module in union.model.modules() if isinstance(module, SteppedPart)]
    losses: list[float] = []
    seen = 0
    for step in range(first_step, first_step + plan.steps):
        for part in stepped:
            part.begin_step(seed, step)
        indices = stream.batch(step)
        losses.append(objective.backward(indices))
        penalties = [term for part in stepped if (term := part.penalty()) is not None]
        if penalties:
            torch.autograd.backward(penalties)
        for part in stepped:
            part.after_backward()
        masters.take_gradients()
        for parameter, start in starts.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=plan.proximal_mu)
        nn.utils.clip_grad_norm_(chain.from_iterable(trained.values()), plan.max_grad_norm)
        for parameter, own in corrections.items():
            parameter.grad = own.clone() if parameter.grad is None else parameter.grad.add_(own)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        masters.give_values()
        if not math.isfinite(losses[-1]):
            raise RunFailed(f"Expected a finite loss, found {losses[-1]} at step {step}; lower train.learning_rate.")
        seen += len(indices)
        if progress is not None:
            progress(len(losses), losses[-1])
    with torch.no_grad():
        for kind in dict.fromkeys(type(part) for part in stepped):
            kind.finish([part for part in stepped if type(part) is kind])
    union.train_only(())
    return TrainOutcome(mean_loss=sum(losses) / len(losses), examples_seen=seen, steps=len(losses))


def _corrections(
    union: UnionAdapter,
    trained: Mapping[BlockId, list[nn.Parameter]],
    correction: Mapping[BlockId, npt.NDArray[np.float32]],
) -> dict[nn.Parameter, Tensor]:
    """SCAFFOLD's correction of each parameter."""
    found = {}
    for block_id, vector in correction.items():
        parts = unflatten(union.spec[block_id], vector)
        for name, parameter in zip(union.parameters(block_id), trained[block_id], strict=True):
            found[parameter] = torch.from_numpy(parts[name].copy()).to(parameter.device)
    return found


def make_optimizer(trained: Mapping[BlockId, list[nn.Parameter]], plan: LocalPlan) -> torch.optim.Optimizer:
    """A fresh optimizer: one group per block, at the block's own rate."""
    groups = [{"params": parameters, "lr": plan.learning_rates[block_id]} for block_id, parameters in trained.items()]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, weight_decay=plan.weight_decay)
    on_cuda = any(p.is_cuda for p in chain.from_iterable(trained.values()))
    if plan.optimizer == "paged-adamw" and on_cuda:
        return paged_adamw(groups, weight_decay=plan.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=plan.weight_decay)
