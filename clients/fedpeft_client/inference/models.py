"""A trained adapter on its base: a run's, or one that came over the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from fedpeft.adapter import AdapterState
from fedpeft.base import ArtifactStore, BaseArtifact, default_store, facts_of, load_tokenizer
from fedpeft.base.architecture import values_of
from fedpeft.config import RunConfig
from fedpeft.config.task import Task
from fedpeft.data import EncodedDataset, Records, encode, validate
from fedpeft.entropy import derive_seed, generator
from fedpeft.errors import DataInvalid
from fedpeft.export import ExportSummary, export_peft
from fedpeft.export.device_class import class_adapter, class_state
from fedpeft.export.gguf import write_gguf_adapter
from fedpeft.export.merged_base import merge_into_base
from fedpeft.export.received import Received, load_received, read_received
from fedpeft.export.whole_model import WholeModel, export_merged, probe_inputs
from fedpeft.round.plan import learning_plan
from fedpeft.tasks import TASKS, Convention
from fedpeft.tasks.generated import Generation
from fedpeft.tuning import Evaluation, evaluate
from fedpeft.tuning.evaluate import evaluate_whole, margins_of, metrics_of
from fedpeft.tuning.generation.decoder import Sampling
from fedpeft.tuning.generation.scores import with_answers
from fedpeft.tuning.lorahub import Mixture, find_mixture
from fedpeft_client.inference.answers import Answerer
from fedpeft_client.inference.encoding import with_base_s_own
from fedpeft_client.training.model_pool import ModelPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedpeft.methods import UnionAdapter

__all__ = ["ReceivedModel", "TrainedModel"]

LONGEST = 512
"""Tokens of a text to classify, where no run says how long examples were."""


class TrainedModel:
    """A base with a trained adapter, ready to answer."""

    def __init__(
        self, config: RunConfig, union: "UnionAdapter", tokenizer: "PreTrainedTokenizerBase", artifact: BaseArtifact
    ) -> None:
        self._config, self._union, self._tokenizer, self._artifact = config, union, tokenizer, artifact

    @property
    def config(self) -> RunConfig:
        """The run's."""
        return self._config

    @property
    def union(self) -> "UnionAdapter":
        """The base with the adapter."""
        return self._union

    @property
    def artifact(self) -> BaseArtifact:
        """The base."""
        return self._artifact

    def probe_inputs(self) -> dict[str, torch.Tensor]:
        """A few sequences of random tokens, as arguments of the model."""
        return probe_inputs(self._tokenizer, seed=self._config.run.seed, forms=self._artifact.manifest.tasks)

    @classmethod
    def load(cls, config: RunConfig, state: AdapterState, *, base: str, store: Path | None = None) -> Self:
        """A run's model with this state of its adapter.

        Args:
            config: the run's.
            state: of the run's union adapter.
            base: digest of the base artifact.
            store: where base artifacts lie; None: the user's store.

        Raises:
            ResourceMissing: the store does not hold the base.
        """
        artifacts = ArtifactStore(store or default_store())
        pool = ModelPool(artifacts)
        plan = learning_plan(config, run_id="", base=base, adapter_spec=state.spec.digest)
        with pool.lend(plan) as union:
            union.load(state)
            artifact = artifacts.get(base)
            return cls(config, union, load_tokenizer(artifact), artifact)

    @property
    def torch_model(self) -> nn.Module:
        """The transformers model with the adapter grafted on."""
        return self._union.model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base's."""
        return self._tokenizer

    def evaluate(self, records: Records, generation: Generation | None = None) -> Evaluation:
        """Loss, accuracy and the task's lanes on other examples; answers are generated as said, or as in the run."""
        task, examples = self._config.task, self._encoded(records)
        score = evaluate(self._union, examples, limit=0, batch_size=32, measure=task.output_measure)
        return with_answers(score, self._union.model, self._tokenizer, examples, task, generation=generation)

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return self._config.task

    def metrics(self, score: Evaluation) -> dict[str, float]:
        """Loss, accuracy where the task has one, and the task's own metrics of an evaluation."""
        return metrics_of(self.task, score)

    def mix(self, states: Sequence[AdapterState], records: Records, *, tries: int) -> Mixture:
        """Take on the mixture of these trained adapters that suits a few examples best (``fedpeft.tuning.lorahub``)."""
        draw = generator(self._config.run.seed, "hub")
        start = self._union.initial_state()
        return find_mixture(self._union, start, states, self._encoded(records), draw=draw, tries=tries)

    def export(
        self,
        folder: Path,
        *,
        whole_matrices: bool = False,
        part_of: "TrainedModel | None" = None,
        convention: str = "",
    ) -> ExportSummary:
        """Write the adapter as it is now to ``folder``, compared with the model on a few sequences of random tokens.

        Args:
            folder: created if need be.
            whole_matrices: see ``export_peft``.
            part_of: the run's whole adapter, of which this is a part.
            convention: the columns of the run's examples, where they are known.
        """
        inputs = self.probe_inputs()
        return export_peft(
            self._union,
            folder,
            base=self._config.base.model,
            artifact=self._artifact,
            inputs=inputs,
            whole_matrices=whole_matrices,
            from_run=None if part_of is None else self._difference(part_of, inputs),
            task=self._config.task,
            convention=convention,
        )

    def export_merged(self, folder: Path) -> WholeModel:
        """Write base and adapter as one ordinary model (``fedpeft.export.whole_model.export_merged``)."""
        inputs = self.probe_inputs()
        head_seed = derive_seed(self._config.run.seed, "head")
        longest = self._config.task.max_length
        return export_merged(self._union, self._artifact, folder, inputs, head_seed=head_seed, max_length=longest)

    def export_gguf(self, path: Path) -> int:
        """Write the adapter for llama.cpp (``fedpeft.export.gguf.write_gguf_adapter``)."""
        return write_gguf_adapter(self._union, self._artifact, path)

    def merge_into_base(self, store: Path) -> BaseArtifact:
        """Write the base with a QA-LoRA adapter in it (``fedpeft.export.merged_base.merge_into_base``)."""
        return merge_into_base(self._union, self._artifact, store)

    def for_class(
        self, *, rank: int | None, methods: Sequence[str] | None, store: Path | None = None
    ) -> "TrainedModel":
        """The same adapter for devices of a class: LoRA cut to ``rank``, other methods than these left out.

        Raises:
            ConfigInvalid: the run has no such methods, or no LoRA of that rank.
        """
        adapter = class_adapter(self._config.adapter, rank=rank, methods=methods)
        config = self._config.model_copy(update={"adapter": adapter})
        artifacts = ArtifactStore(store or default_store())
        pool = ModelPool(artifacts)
        plan = learning_plan(config, run_id="", base=self._artifact.digest, adapter_spec="")
        with pool.lend(plan) as union:
            union.load(class_state(self._union.state(), union.initial_state()))
            return TrainedModel(config, union, self._tokenizer, self._artifact)

    @torch.no_grad()
    def _difference(self, other: "TrainedModel", inputs: dict[str, torch.Tensor]) -> float:
        ours, theirs = (values_of(one._union.model(**inputs)) for one in (self, other))
        return float((ours - theirs).abs().max())

    def _encoded(self, records: Records) -> EncodedDataset:
        task = self._config.task
        validate(records, task)
        return with_base_s_own(encode(records, task, task.outputs, self._tokenizer), self._artifact)

    def answerer(self, convention: Convention | None = None) -> Answerer:
        """The model to ask.

        Args:
            convention: how the examples were written that a language model was trained on; None: as a conversation
                where the base has a chat template, else as the text stands.
        """
        task = self._config.task
        return Answerer(
            self._union.model,
            self._tokenizer,
            labels=task.outputs if task.record.adds_head else (),
            longest=task.max_length,
            convention=convention,
            margins=self.margins if task.record.prefers else None,
        )

    def margins(self, records: Records) -> list[float]:
        """Of rows with two answers: the reward of the chosen one over the rejected one's; above 0 it is preferred."""
        found: list[float] = margins_of(self._union.model, self._encoded(records), batch_size=8).tolist()
        return found

    def predict(self, texts: Sequence[str], convention: Convention | None = None) -> list[str]:
        """A class name for each text, or its greedy continuation of at most 64 tokens; see ``answerer``."""
        return _predicted(self.answerer(convention), texts)


class ReceivedModel:
    """A base that this device holds with an adapter that it fetched, ready to answer."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        about: Received,
        positions: int | None,
        artifact: BaseArtifact,
    ) -> None:
        self._model, self._tokenizer, self._about, self._positions = model, tokenizer, about, positions
        self._artifact = artifact

    @classmethod
    def load(cls, folder: Path, bases: Path) -> Self:
        """The adapter in ``folder``, as ``fetch_adapter`` left it.

        Raises:
            IntegrityFailed: the folder holds anything but an adapter of fedpeft.
            ResourceMissing: the base is not among ``bases``.
        """
        about = read_received(folder)
        artifact = ArtifactStore(bases).get(about.base)
        positions = facts_of(artifact).model.positions
        return cls(load_received(folder, artifact), load_tokenizer(artifact), about, positions, artifact)

    def answerer(self, convention: Convention | None = None) -> Answerer:
        """As ``TrainedModel.answerer``; without ``convention`` as its files say.

        A text is cut where the examples were; where the files do not say, at 512 tokens or what the base takes.
        """
        about = self._about
        return Answerer(
            self._model,
            self._tokenizer,
            labels=about.labels,
            longest=self.task.max_length,
            convention=convention or about.convention,
            margins=self.margins if self.task.record.prefers else None,
        )

    def margins(self, records: Records) -> list[float]:
        """As ``TrainedModel.margins``."""
        found: list[float] = margins_of(self._model, self._encoded(records), batch_size=8).tolist()
        return found

    @property
    def task(self) -> Task:
        """What it was trained for; where its files do not say, the columns of a language model decide."""
        about = self._about
        if about.task is not None:
            return about.task.model_copy(update={"max_length": self._at_most(about.task.max_length)})
        record = next(
            record
            for record in TASKS.values()
            if record.form == about.form and record.problem_type in ("", about.problem_type)
        )
        named = about.labels if record.named_outputs else ()
        return Task(kind=record.name, labels=named, max_length=self._at_most(LONGEST))  # type: ignore[arg-type]

    def _at_most(self, length: int) -> int:
        return length if self._positions is None else min(length, self._positions)

    def evaluate(self, records: Records, generation: Generation | None = None) -> Evaluation:
        """As ``TrainedModel.evaluate``, on examples that this device holds."""
        task, examples = self.task, self._encoded(records)
        score = evaluate_whole(self._model, examples, batch_size=32, measure=task.output_measure)
        return with_answers(score, self._model, self._tokenizer, examples, task, generation=generation)

    def _encoded(self, records: Records) -> EncodedDataset:
        task = self.task
        validate(records, task)
        return with_base_s_own(encode(records, task, task.outputs, self._tokenizer), self._artifact)

    def metrics(self, score: Evaluation) -> dict[str, float]:
        """As ``TrainedModel.metrics``; of numbers without correlations where the files do not say their range."""
        return metrics_of(self.task, score)

    def predict(self, texts: Sequence[str], convention: Convention | None = None) -> list[str]:
        """As ``TrainedModel.predict``."""
        return _predicted(self.answerer(convention), texts)


def _predicted(asked: Answerer, texts: Sequence[str]) -> list[str]:
    if asked.embeds:
        raise DataInvalid(
            "Expected texts to answer, found a model of vectors: ask `adapter predict` or /v1/embeddings."
        )
    if asked.labels:
        return [choice.label for choice in asked.classify(texts)]
    questions = [asked.tokens_of({"text": text}) for text in texts]
    return [answer.text for answer in asked.answers(questions, [Sampling()] * len(questions))]
