"""The device's trainer: its examples, the methods that it can afford, and torch.

Implements ``fedpeft.round.local.Trainer``. Examples are encoded once a task and never leave this object;
what leaves is deltas and sums, for the secure aggregation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.config.derived import has_frozen_layers
from fedpeft.config.model import Adapter, Train
from fedpeft.data import EncodedDataset, Records, encode
from fedpeft.entropy import derive_seed
from fedpeft.ids import BlockId
from fedpeft.methods import blocks_for
from fedpeft.methods.blocks import HEAD
from fedpeft.round.local import LocalResult
from fedpeft.round.messages import FitRequest
from fedpeft.round.plan import LearningPlan
from fedpeft.tuning import ActivationCache, LocalPlan, evaluate, train
from fedpeft_client.bench import Bench

__all__ = ["EVAL_BATCH", "Capacity", "Prepared", "TorchTrainer", "batch_seed", "learning_rates", "prepared"]

CACHE_BYTES = 32 * 2**20
"""Bound of the activation cache of one data set, so that a dozen virtual clients fit a small machine; what does not
fit is computed anew."""

EVAL_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a device can afford to train.

    Args:
        methods: PEFT methods, of those that the run's adapter has.
        rank: for lora, the tier at which it stops; None is the full rank.
        head: whether it trains the class head.
    """

    methods: tuple[str, ...]
    rank: int | None = None
    head: bool = True

    def __str__(self) -> str:
        names = [f"lora r{self.rank}" if method == "lora" and self.rank else method for method in self.methods]
        return " + ".join(names) or "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Encoded examples with the cache of activations below the adapted layers; None where every layer adapts.

    Args:
        train, held_out: the two sides.
        train_cache, eval_cache: their caches.
    """

    train: EncodedDataset
    held_out: EncodedDataset
    train_cache: ActivationCache | None
    eval_cache: ActivationCache | None


def prepared(train_set: EncodedDataset, held_out: EncodedDataset, plan: LearningPlan, name: str) -> Prepared:
    """Give both sides their caches, for the stream of batches that belongs to ``name``."""
    if not has_frozen_layers(plan.adapter):
        return Prepared(train=train_set, held_out=held_out, train_cache=None, eval_cache=None)
    return Prepared(
        train=train_set,
        held_out=held_out,
        train_cache=ActivationCache.for_training(
            train_set,
            batch_size=plan.train.batch_size,
            seed=batch_seed(plan.seed, name),
            max_bytes=CACHE_BYTES,
        ),
        eval_cache=ActivationCache.for_evaluation(held_out, batch_size=EVAL_BATCH, max_bytes=CACHE_BYTES),
    )


class TorchTrainer:
    """One device's trainer.

    Args:
        device: its name; with the run's seed it determines the order of its batches.
        capacity: what it trains.
        bench: the base model, possibly shared with other virtual clients.
        train, held_out: its examples.
    """

    def __init__(self, *, device: str, capacity: Capacity, bench: Bench, train: Records, held_out: Records) -> None:
        self._device, self._capacity, self._bench = device, capacity, bench
        self._train, self._held_out = train, held_out
        self._encoded: dict[str, Prepared] = {}

    @property
    def methods(self) -> str:
        """What it trains, for reports."""
        return str(self._capacity)

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        return self._bench.spec(plan)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        capacity = self._capacity
        spec = self._bench.spec(plan)
        return frozenset(blocks_for(spec, methods=capacity.methods, rank=capacity.rank, head=capacity.head))

    def fit(self, plan: LearningPlan, state: AdapterState, request: FitRequest) -> LocalResult:
        """See ``Trainer``: evaluate the received state, then train from it."""
        examples = self._examples(plan)
        with self._bench.lend(plan) as union:
            union.load(state)
            measured = evaluate(
                union,
                examples.held_out,
                limit=request.eval_examples,
                batch_size=EVAL_BATCH,
                cache=examples.eval_cache,
            )
            deltas = {}
            trained_loss, trained = 0.0, 0
            if request.train:
                rates = learning_rates(plan.adapter, plan.train, self.trains(plan))
                local = _local_plan(plan.train, rates, request.learning_rate_factor)
                outcome = train(
                    union,
                    examples.train,
                    local,
                    seed=batch_seed(plan.seed, self._device),
                    first_step=request.first_step,
                    cache=examples.train_cache,
                )
                after = union.extract(sorted(rates))
                deltas = {block_id: after[block_id] - state[block_id] for block_id in after}
                trained_loss, trained = outcome.mean_loss * outcome.examples_seen, outcome.examples_seen
        return LocalResult(
            deltas=MappingProxyType(deltas),
            examples=len(examples.train),
            trained_loss=trained_loss,
            trained=trained,
            evaluated_loss=measured.loss_sum,
            correct=measured.correct,
            evaluated=measured.examples,
        )

    def _examples(self, plan: LearningPlan) -> Prepared:
        """The device's examples under this plan, encoded on first use."""
        key = f"{plan.run_id} {plan.base} {plan.task.model_dump_json()}"
        if key not in self._encoded:
            self._encoded = {key: self._encode(plan)}
        return self._encoded[key]

    def _encode(self, plan: LearningPlan) -> Prepared:
        tokenizer = self._bench.tokenizer(plan)
        with self._bench.tokenizing:
            train_set = encode(self._train, plan.task, plan.task.labels, tokenizer)
            held_out = encode(self._held_out, plan.task, plan.task.labels, tokenizer)
        return prepared(train_set, held_out, plan, self._device)


def batch_seed(seed: int, device: str) -> int:
    """The seed of a device's stream of batches in a run."""
    return derive_seed(seed, "batches", device)


def learning_rates(adapter: Adapter, plan: Train, blocks: frozenset[BlockId]) -> Mapping[BlockId, float]:
    """The learning rate of each trained block: its method's own, or the run's."""
    return {block_id: _own_rate(adapter, block_id) or plan.learning_rate for block_id in sorted(blocks)}


def _own_rate(adapter: Adapter, block_id: BlockId) -> float | None:
    method = block_id.split(".")[0]
    rate: float | None = adapter.head_learning_rate if method == HEAD else getattr(adapter, method).learning_rate
    return rate


def _local_plan(plan: Train, rates: Mapping[BlockId, float], factor: float) -> LocalPlan:
    return LocalPlan(
        steps=plan.local_steps,
        batch_size=plan.batch_size,
        optimizer=plan.optimizer,
        learning_rates={block_id: rate * factor for block_id, rate in rates.items()},
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
    )
