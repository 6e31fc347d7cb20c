"""A client's examples as its trainer needs them: encoded once per task, with the caches of their activations.

They are private: they stay in this process and in a nameless file of its own, and go with it.
"""

import threading
from dataclasses import dataclass, replace

from fedpeft.base.fit import expect_examples_fit
from fedpeft.data import EncodedDataset, Records, count_people, encode, encode_usable, nothing_encoded
from fedpeft.entropy import derive_seed
from fedpeft.planner import evaluation_batch
from fedpeft.round.failures import cause_of
from fedpeft.round.local import Effort
from fedpeft.round.plan import LearningPlan
from fedpeft.tuning import ActivationCache
from fedpeft.tuning.preference.losses import with_reference
from fedpeft_client.training.model_pool import ModelPool

__all__ = ["Examples", "Prepared", "batch_seed", "cacheable_examples"]

MIB = 2**20


def cacheable_examples(length: int, hidden: int, cache_mb: int) -> int:
    """How many examples of so many tokens a cache of float32 activations holds."""
    return cache_mb * MIB // (4 * length * hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Encoded examples with the cache of activations below the adapted layers; None where every layer adapts.

    Args:
        train, held_out: the two sides.
        train_cache, eval_cache: their caches.
        eval_batch: how many held-out examples are evaluated at once.
        troubles: what could not be used, for the device's own log.
    """

    train: EncodedDataset
    held_out: EncodedDataset
    train_cache: ActivationCache | None
    eval_cache: ActivationCache | None
    eval_batch: int
    troubles: tuple[str, ...] = ()

    def carefully(self) -> "Prepared":
        """One example at a time, and nothing kept on the disk."""
        return replace(self, train_cache=None, eval_cache=None, eval_batch=1)

    @classmethod
    def nothing(cls, plan: LearningPlan, *troubles: str) -> "Prepared":
        """As of a device that has no examples."""
        none = nothing_encoded(plan.task)
        return cls(train=none, held_out=none, train_cache=None, eval_cache=None, eval_batch=1, troubles=troubles)


class Examples:
    """The examples of one client.

    Args:
        name: the client's; with the run's seed it determines the order of its batches.
        pool: whose tokenizer encodes them.
        train, held_out: its records.
        cache_mb: disk for the activations of each of the two, MiB; what does not fit is computed anew.
        unusable: how many training examples there are besides, which teach nothing.
        people: how many people the training examples are of, these included; None: as ``train`` says.
        evaluates: whether the device says that it has held-out examples; None: as it has.
        tokens: both sides, where a program has turned them into tokens already; then the records are none, and
            ``unusable`` counts the training side.

    Attributes:
        count: training examples, whether they can be used or not.
        evaluates: whether it says that it has held-out ones.
    """

    def __init__(
        self,
        name: str,
        *,
        pool: ModelPool,
        train: Records,
        held_out: Records,
        cache_mb: int,
        unusable: int = 0,
        people: int | None = None,
        evaluates: bool | None = None,
        tokens: tuple[EncodedDataset, EncodedDataset] | None = None,
    ) -> None:
        self.count = len(train) + unusable
        self._tokens = tokens
        self.evaluates = len(held_out) > 0 if evaluates is None else evaluates
        self._name, self._pool, self._cache_bytes = name, pool, cache_mb * MIB
        self._train, self._held_out = train, held_out
        self._prepared: tuple[str, Prepared] | None = None
        self._encoded: tuple[str, tuple[EncodedDataset, EncodedDataset]] | None = None
        self._people = people
        self._lock = threading.Lock()

    def units(self, plan: LearningPlan) -> int:
        """Training examples, or people under a plan that is private by them; usable or not."""
        if plan.privacy is None or plan.privacy.unit == "example":
            return self.count
        return count_people(self._train) if self._people is None else self._people

    def encoded(self, plan: LearningPlan) -> tuple[EncodedDataset, EncodedDataset]:
        """Training and held-out examples as tokens, for whoever can mend them: kept for the rounds that follow.

        Raises:
            DataInvalid: rows that the base's tokenizer or chat template refuses, all at once; or a base that these
                examples do not fit.
        """
        with self._lock:
            tokenizer = self._pool.tokenizer(plan)
            with self._pool.tokenizing:
                train, held_out = (
                    encode(records, plan.task, plan.task.outputs, tokenizer)
                    for records in (self._train, self._held_out)
                )
            expect_examples_fit((train, held_out), vocabulary=self._pool.embedding_rows(plan), where=self._name)
            self._encoded = _encoding_key(plan), (train, held_out)
            return train, held_out

    def mean_length(self, plan: LearningPlan) -> float:
        """Tokens that an example has on average, of those that ``encoded`` made; else as many as it may have."""
        if self._encoded is None:
            return plan.task.row_tokens
        sizes = [len(ids) for side in self._encoded[1] for ids in side.input_ids]
        return sum(sizes) / len(sizes) if sizes else plan.task.row_tokens

    def prepared(self, plan: LearningPlan) -> Prepared:
        """They under this plan: encoded on first use, kept until another run, base or task asks."""
        key = f"{plan.run_id} {plan.base} {plan.task.model_dump_json()} {plan.privacy is None}"
        with self._lock:
            if self._prepared is None or self._prepared[0] != key:
                self._prepared = key, self._prepare(plan)
            return self._prepared[1]

    def for_effort(self, plan: LearningPlan, effort: Effort) -> Prepared:
        """They for so much effort; under example-level privacy none where they cannot be had: steps are noise then."""
        if effort is Effort.BLANK:
            return Prepared.nothing(plan)
        try:
            prepared = self.prepared(plan)
        except Exception as error:
            if plan.privacy is None:
                raise
            return Prepared.nothing(plan, cause_of(error))
        return prepared if effort is Effort.FULL else prepared.carefully()

    def _usable(self, plan: LearningPlan) -> tuple[tuple[EncodedDataset, str], tuple[EncodedDataset, str]]:
        """Both sides as tokens, each with what was left out; as ``encoded`` left them if it was asked before."""
        if self._tokens is not None:
            expect_examples_fit(self._tokens, vocabulary=self._pool.embedding_rows(plan), where=self._name)
            return (self._tokens[0], ""), (self._tokens[1], "")
        if self._encoded is not None and self._encoded[0] == _encoding_key(plan):
            train, held_out = self._encoded[1]
            return (train, ""), (held_out, "")
        tokenizer = self._pool.tokenizer(plan)
        with self._pool.tokenizing:
            return (
                encode_usable(self._train, plan.task, tokenizer),
                encode_usable(self._held_out, plan.task, tokenizer),
            )

    def _prepare(self, plan: LearningPlan) -> Prepared:
        (train, lost), (held_out, lost_too) = self._usable(plan)
        if plan.task.record.prefers:
            train, held_out = self._referenced(plan, train), self._referenced(plan, held_out)
        troubles = tuple(filter(None, (lost, lost_too)))
        batch = evaluation_batch(length=plan.task.row_tokens, vocabulary=self._pool.vocabulary(plan))
        if not self._pool.frozen_layers(plan):
            return Prepared(
                train=train, held_out=held_out, train_cache=None, eval_cache=None, eval_batch=batch, troubles=troubles
            )
        private = plan.privacy is not None
        # Answers to be compared have no fixed shape in which a neighbour changes nothing: under privacy none is cached.
        cached = len(train) > 0 and not (private and plan.task.record.prefers)
        make_cache = ActivationCache.for_private_training if private else ActivationCache.for_training
        return Prepared(
            train=train,
            held_out=held_out,
            train_cache=make_cache(
                train,
                batch_size=plan.train.batch_size,
                seed=batch_seed(plan.seed, self._name),
                max_bytes=self._cache_bytes,
            )
            if cached
            else None,
            eval_cache=ActivationCache.for_evaluation(held_out, batch_size=batch, max_bytes=self._cache_bytes)
            if len(held_out)
            else None,
            eval_batch=batch,
            troubles=troubles,
        )

    def _referenced(self, plan: LearningPlan, examples: EncodedDataset) -> EncodedDataset:
        """With what the base says of the answers: computed here, once for a run."""
        with self._pool.plain_model(plan) as base:
            return with_reference(examples, base, alone=plan.privacy is not None)


def batch_seed(seed: int, client: str) -> int:
    """The seed of a client's stream of batches in a run."""
    return derive_seed(seed, "batches", client)


def _encoding_key(plan: LearningPlan) -> str:
    """What tokens depend on beside the records; not the run, so they outlive it."""
    return f"{plan.base} {plan.task.model_dump_json()}"
