"""Using a trained adapter: the base, the adapter's state, an answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from fedpeft.adapter import AdapterState
from fedpeft.base import ArtifactStore, BaseArtifact, default_store, facts_of, load_tokenizer
from fedpeft.config import RunConfig
from fedpeft.data import EncodedDataset, Records, encode, validate
from fedpeft.data.prompts import question_tokens
from fedpeft.entropy import derive_seed, generator
from fedpeft.export import ExportSummary, export_peft
from fedpeft.export.device_class import class_adapter, class_state
from fedpeft.export.received import load_received, read_received
from fedpeft.export.whole_model import WholeModel, export_merged, probe_inputs
from fedpeft.round.plan import learning_plan
from fedpeft.tasks import Convention
from fedpeft.tuning import Evaluation, evaluate
from fedpeft.tuning.lorahub import Mixture, find_mixture
from fedpeft_client.training.model_pool import ModelPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedpeft.methods import UnionAdapter

__all__ = ["ReceivedModel", "TrainedModel"]

ANSWER_TOKENS = 64
LONGEST = 512
"""Tokens of a text to classify, where no run says how long examples were."""


class TrainedModel:
    """A base with a trained adapter, ready to answer."""

    def __init__(
        self, config: RunConfig, union: "UnionAdapter", tokenizer: "PreTrainedTokenizerBase", artifact: BaseArtifact
    ) -> None:
        self._config, self._union, self._tokenizer, self._artifact = config, union, tokenizer, artifact

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

    def evaluate(self, records: Records) -> Evaluation:
        """Loss and accuracy on other examples of the same task."""
        return evaluate(self._union, self._encoded(records), limit=0, batch_size=32)

    def mix(self, states: Sequence[AdapterState], records: Records, *, tries: int) -> Mixture:
        """Take on the mixture of these trained adapters that suits a few examples best (``fedpeft.tuning.lorahub``)."""
        draw = generator(self._config.run.seed, "hub")
        start = self._union.initial_state()
        return find_mixture(self._union, start, states, self._encoded(records), draw=draw, tries=tries)

    def export(
        self, folder: Path, *, whole_matrices: bool = False, part_of: "TrainedModel | None" = None
    ) -> ExportSummary:
        """Write the adapter as it is now to ``folder``, compared with the model on a few sequences of random tokens.

        Args:
            folder: created if need be.
            whole_matrices: see ``export_peft``.
            part_of: the run's whole adapter, of which this is a part.
        """
        inputs = probe_inputs(self._tokenizer, seed=self._config.run.seed)
        return export_peft(
            self._union,
            folder,
            base=self._config.base.model,
            artifact=self._artifact,
            inputs=inputs,
            whole_matrices=whole_matrices,
            from_run=None if part_of is None else self._difference(part_of, inputs),
        )

    def export_merged(self, folder: Path) -> WholeModel:
        """Write base and adapter as one ordinary model (``fedpeft.export.whole_model.export_merged``)."""
        inputs = probe_inputs(self._tokenizer, seed=self._config.run.seed)
        head_seed = derive_seed(self._config.run.seed, "head")
        return export_merged(self._union, self._artifact, folder, inputs, head_seed=head_seed)

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
        return float((self._union.model(**inputs).logits - other._union.model(**inputs).logits).abs().max())

    def _encoded(self, records: Records) -> EncodedDataset:
        task = self._config.task
        validate(records, task)
        return encode(records, task, task.labels, self._tokenizer)

    @torch.no_grad()
    def predict(self, texts: Sequence[str], convention: Convention | None = None) -> list[str]:
        """A class name for each text, or its greedy continuation of at most 64 tokens.

        Args:
            texts: to classify, or to answer.
            convention: how the examples were written that a language model was trained on; None: as a conversation
                where the base has a chat template, else as the text stands.
        """
        task, model = self._config.task, self._union.model
        if task.record.adds_head:
            return [_class_of(model, self._tokenizer, text, task.labels, task.max_length) for text in texts]
        return [_continued(model, self._tokenizer, text, convention) for text in texts]


class ReceivedModel:
    """A base that this device holds with an adapter that it fetched, ready to answer."""

    def __init__(self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", labels: tuple[str, ...], longest: int):
        self._model, self._tokenizer, self._labels, self._longest = model, tokenizer, labels, longest

    @classmethod
    def load(cls, folder: Path, bases: Path) -> Self:
        """The adapter in ``folder``, as ``fetch_adapter`` left it.

        Raises:
            IntegrityFailed: the folder holds anything but an adapter of fedpeft.
            ResourceMissing: the base is not among ``bases``.
        """
        about = read_received(folder)
        artifact = ArtifactStore(bases).get(about.base)
        longest = facts_of(artifact).model.positions or LONGEST
        return cls(load_received(folder, artifact), load_tokenizer(artifact), about.labels, min(longest, LONGEST))

    @torch.no_grad()
    def predict(self, texts: Sequence[str], convention: Convention | None = None) -> list[str]:
        """As ``TrainedModel.predict``; a text is cut to 512 tokens, or to what the base takes."""
        if self._labels:
            return [_class_of(self._model, self._tokenizer, text, self._labels, self._longest) for text in texts]
        return [_continued(self._model, self._tokenizer, text, convention) for text in texts]


def _class_of(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", text: str, labels: Sequence[str], longest: int
) -> str:
    ids = tokenizer([text], truncation=True, max_length=longest)["input_ids"][0]
    tokens = torch.tensor([ids], dtype=torch.int64)
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return labels[int(logits.argmax())]


def _continued(model: nn.Module, tokenizer: "PreTrainedTokenizerBase", text: str, convention: Convention | None) -> str:
    chat = Convention.MESSAGES if tokenizer.chat_template else Convention.PROMPT_COMPLETION
    ids = question_tokens(text, convention or chat, tokenizer)
    tokens = torch.from_numpy(ids.astype("int64"))[None]
    generated: list[int] = []
    for _ in range(ANSWER_TOKENS):
        chosen = int(model(input_ids=tokens).logits[0, -1].argmax())
        if chosen == tokenizer.eos_token_id:
            break
        generated.append(chosen)
        tokens = torch.cat([tokens, torch.tensor([[chosen]])], dim=1)
    return str(tokenizer.decode(generated))
