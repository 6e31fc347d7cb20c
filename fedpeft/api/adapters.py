"""``fedpeft.load_adapter``: a trained adapter on its base, ready to answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.adapter import AdapterState
from fedpeft.api.run_path import run_directory
from fedpeft.config import RunConfig
from fedpeft.data import load_records
from fedpeft.data.memory import rows_of
from fedpeft.errors import DataInvalid
from fedpeft.round.plan import learning_plan
from fedpeft.tasks import Convention
from fedpeft_server.run.run_view import kept_state, read_run

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from fedpeft_client.inference import TrainedModel

__all__ = ["Adapter", "load_adapter"]


class Adapter:
    """The base of a run with its trained adapter.

    Attributes:
        run: the run directory.
        labels: the class names in order; empty for a language model.
    """

    def __init__(
        self, run: Path, model: "TrainedModel", labels: tuple[str, ...], convention: Convention | None
    ) -> None:
        self.run, self.labels = run, labels
        self._model, self._convention = model, convention

    def predict(self, texts: Sequence[str]) -> list[str]:
        """A class name for each text, or its greedy continuation, asked as the run's examples were written."""
        return self._model.predict([texts] if isinstance(texts, str) else list(texts), self._convention)

    def evaluate(self, data: object, *, columns: dict[str, str] | None = None) -> dict[str, float]:
        """Loss and accuracy on labelled examples of the same task.

        Args:
            data: a path, or rows as ``simulate`` takes them.
            columns: our column name -> theirs, e.g. ``{"text": "note"}``.

        Returns:
            ``loss``, ``accuracy`` and ``predictions``: examples, or tokens of a language model.
        """
        source = str(data) if isinstance(data, str | Path) else rows_of(data)
        records = load_records(source, columns)
        score = self._model.evaluate(records)
        return {
            "loss": score.loss_sum / score.examples,
            "accuracy": score.correct / score.examples,
            "predictions": score.examples,
        }

    def merge(self, folder: str | Path) -> Path:
        """Write base and adapter as one model that transformers alone loads."""
        self._model.export_merged(Path(folder))
        return Path(folder)

    @property
    def torch_model(self) -> "nn.Module":
        """The transformers model with the adapter in it."""
        return self._model.torch_model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base's."""
        return self._model.tokenizer


def load_adapter(path: str | Path, *, store: str | Path | None = None) -> Adapter:
    """The adapter that a run kept, on its base.

    Args:
        path: a run directory, or its ``adapters/final``.
        store: where base artifacts lie; None: the user's store.

    Raises:
        DataInvalid: this is no run.
        ResourceMissing: the store does not hold the base.
    """
    from fedpeft_client.inference import TrainedModel

    run = run_directory(path)
    if not (run / "manifest.json").is_file() and (run / "inspect.json").is_file():
        run = run.absolute().parent.parent
    if not (run / "manifest.json").is_file():
        raise DataInvalid(
            f"Expected a run, or its adapters/final, found {path}; a copied adapter loads with peft: "
            "PeftModel.from_pretrained(base, folder)."
        )
    view = read_run(run)
    config, convention, base = view.config(), view.manifest.convention, view.manifest.base_digest
    place = None if store is None else Path(store)
    state = kept_state(view) or _first_state(config, base, place)
    model = TrainedModel.load(config, state, base=base, store=place)
    return Adapter(run, model, config.task.labels, Convention(convention) if convention else None)


def _first_state(config: RunConfig, base: str, store: Path | None) -> AdapterState:
    """Where a run began of which no round made anything better."""
    from fedpeft.base import ArtifactStore, default_store
    from fedpeft.export.earlier_runs import with_sources
    from fedpeft_client.training.model_pool import ModelPool

    pool = ModelPool(ArtifactStore(store or default_store()))
    made = pool.initial_state(learning_plan(config, run_id="", base=base, adapter_spec=""))
    return with_sources(made, config.adapter, config.base.adapters)
