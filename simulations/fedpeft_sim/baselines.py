"""What the federation is compared with: every client alone, and all data in one place.

Alone: a client takes as many steps as it takes in the federation, with the methods that it can afford.
Centralised: every block of the adapter, as many samples as the whole federation. Same base, adapter,
learning rates, schedule and batches of the same size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedpeft.adapter import AdapterState
from fedpeft.aggregate import between_rounds
from fedpeft.aggregate.gradient_start import sketches, started_from
from fedpeft.aggregate.head_start import measures_head
from fedpeft.config.model import Rounds
from fedpeft.config.task import Task
from fedpeft.data import EncodedDataset
from fedpeft.ids import BlockId
from fedpeft.methods import UnionAdapter, blocks_for, due_blocks
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.rates import learning_rates
from fedpeft.round.ring_range import unbounded_range
from fedpeft.tuning import Evaluation, HiddenSource, JoinedCaches, LocalPlan, evaluate, train
from fedpeft.tuning.class_means import measure_class_means
from fedpeft.tuning.evaluate import metrics_of
from fedpeft.tuning.gradient_sketch import sketch_gradient
from fedpeft_client.training.examples import Examples, Prepared, batch_seed
from fedpeft_client.training.model_pool import ModelPool, release_free_memory
from fedpeft_sim.population import Client

__all__ = ["Baselines", "held_out_scores", "run_baselines", "score_of"]

EVERYONE = "centralised"
_LARGEST_LOSS = 50.0
"""Nats a token; its exponential still fits a table, and any vocabulary's chance is far below."""

Scores = Mapping[str, Evaluation]
Progress = Callable[[str, int, int], None]
"""Called with (what is trained, steps done, steps in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """Held-out scores by client name.

    Args:
        alone: each client's own model on its own held-out examples.
        alone_everywhere: each client's own model on the held-out examples of all clients.
        centralised: the one model on each client's held-out examples.
    """

    alone: Scores
    alone_everywhere: Scores
    centralised: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """What is trained, in how many rounds, at how many times the table's learning rates."""

    plan: LearningPlan
    rounds: Rounds
    scale: float


def run_baselines(
    plan: LearningPlan,
    rounds: Rounds,
    initial: AdapterState,
    clients: Sequence[Client],
    pool: ModelPool,
    *,
    examples: Mapping[str, Examples],
    workers: int,
    scale: float = 0.0,
    progress: Progress,
) -> Baselines:
    """Train and score both baselines; the long centralised job starts first.

    Args:
        scale: how many times the table's learning rates the federation has measured to suit it; 0: it has not.
    """
    rated = Rated(plan=plan, rounds=rounds, scale=scale)
    sets = {client.name: examples[client.name].prepared(plan) for client in clients}
    spec = initial.spec

    def train_alone(client: Client) -> tuple[Evaluation, Evaluation]:
        capacity = client.capacity
        blocks = frozenset(blocks_for(spec, methods=capacity.methods, rank=capacity.rank, head=capacity.head))
        with pool.lend(plan) as union:
            own = sets[client.name]
            _train(union, initial, own.train, own.train_cache, rated, blocks, client.name, 1, progress)
            scores = {name: _score(union, other, plan.task) for name, other in sets.items()}
        return scores[client.name], Evaluation.joined(list(scores.values()))

    def train_together() -> dict[str, Evaluation]:
        blocks = frozenset(block.block_id for block in spec.blocks if block.trainable)
        with pool.lend(plan) as union:
            everyone, cache = _together(list(sets.values()))
            _train(union, initial, everyone, cache, rated, blocks, EVERYONE, len(clients), progress)
            return {name: _score(union, own, plan.task) for name, own in sets.items()}

    with ThreadPoolExecutor(workers, thread_name_prefix="baseline") as threads:
        together = threads.submit(train_together)
        alone = {client.name: threads.submit(train_alone, client) for client in clients}
        return Baselines(
            alone={name: job.result()[0] for name, job in alone.items()},
            alone_everywhere={name: job.result()[1] for name, job in alone.items()},
            centralised=together.result(),
        )


def held_out_scores(
    plan: LearningPlan, state: AdapterState, examples: Mapping[str, Examples], pool: ModelPool
) -> Scores:
    """A state's score on every client's held-out examples: possible in a simulation only."""
    with pool.lend(plan) as union:
        union.load(state)
        return {name: _score(union, own.prepared(plan), plan.task) for name, own in examples.items()}


def score_of(task: Task, scores: Sequence[Evaluation]) -> float | None:
    """What the task compares, of all these examples together; None where it is not defined."""
    whole = Evaluation.joined(scores)
    if not whole.examples:
        return None
    perplexity = math.exp(min(whole.loss_sum / whole.examples, _LARGEST_LOSS))
    return (metrics_of(task, whole) | {"perplexity": perplexity}).get(task.record.compared)


def _train(
    union: UnionAdapter,
    initial: AdapterState,
    examples: EncodedDataset,
    cache: HiddenSource | None,
    rated: Rated,
    blocks: frozenset[BlockId],
    name: str,
    times: int,
    progress: Progress,
) -> None:
    """The steps of a whole run in one place, round by round as the schedule has it; the optimizer is fresh each."""
    union.load(initial)
    plan, rounds = rated.plan, rated.rounds
    steps = plan.train.local_steps * times
    for round_id in range(1, rounds.count + 1):
        factor = learning_rate_factor(plan.train, rounds, round_id)
        due = blocks & due_blocks(union.spec, plan.adapter, round_id)
        rates = learning_rates(plan, union.spec, due, scale=rated.scale)
        local = LocalPlan(
            steps=steps,
            batch_size=plan.train.batch_size,
            optimizer=plan.train.optimizer,
            learning_rates={block_id: rate * factor for block_id, rate in rates.items()},
            weight_decay=plan.train.weight_decay,
            max_grad_norm=plan.train.max_grad_norm,
        )
        order = batch_seed(plan.seed, name)
        if measures_head(union.spec, plan.adapter, round_id):
            size = plan.train.batch_size
            measure_class_means(union, examples, steps=steps, batch_size=size, seed=order, cache=cache)
        elif sketches(plan.adapter, round_id):
            limit = unbounded_range(plan)
            found, _, _ = sketch_gradient(
                union, initial, examples, local, run_seed=plan.seed, seed=order, max_abs=limit, cache=cache
            )
            union.load(started_from(initial, found))
        else:
            train(union, examples, local, seed=order, first_step=(round_id - 1) * steps, cache=cache)
        release_free_memory()
        state = union.state()
        decided = between_rounds(state, plan.adapter, round_id)
        if decided is not state:
            union.load(decided)
        progress(name, round_id * steps, rounds.count * steps)


def _together(prepared: Sequence[Prepared]) -> tuple[EncodedDataset, HiddenSource | None]:
    """All clients' examples as one data set, in order of the clients' names, and their caches as one."""
    sets = [own.train for own in prepared]
    caches = [own.train_cache for own in prepared if own.train_cache is not None]
    joined = EncodedDataset.joined(sets)
    return joined, JoinedCaches(caches) if caches else None


def _score(union: UnionAdapter, examples: Prepared, task: Task) -> Evaluation:
    return evaluate(
        union,
        examples.held_out,
        limit=0,
        batch_size=examples.eval_batch,
        cache=examples.eval_cache,
        measure=task.output_measure,
    )
