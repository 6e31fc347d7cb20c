"""``fedpeft.load_adapter``: a trained adapter on its base, ready to answer."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.api.kept import trained_model
from fedpeft.api.run_path import run_directory
from fedpeft.data import load_records
from fedpeft.data.memory import rows_of
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention
from fedpeft.tasks.generated import Generation
from fedpeft_server.run.run_view import read_run

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
        """A class name for each text, or its greedy continuation, asked as the run's examples were written.

        Raises:
            DataInvalid: these are no texts. A frame or mapping is refused, too: its texts are a column of it.
        """
        if isinstance(texts, Mapping) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
            raise DataInvalid(
                f"Expected a list of texts, found {type(texts).__name__}; of rows or columns give the texts alone, as "
                'rows["text"].'
            )
        asked = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(asked):
            if not isinstance(text, str):
                raise DataInvalid(f"Expected texts, found {text!r:.40} at {number}.")
        return self._model.predict(asked, self._convention)

    def evaluate(
        self, data: object, *, columns: dict[str, str] | None = None, generate: int = 0, max_new_tokens: int = 64
    ) -> dict[str, float]:
        """Every metric of the task on labelled examples, as `fedpeft adapter eval` prints them.

        Args:
            data: a path, or rows as ``simulate`` takes them.
            columns: our column name -> theirs, e.g. ``{"text": "note"}``.
            generate: of a language model: generate answers to so many of the prompts, for ``rouge_l`` and
                ``exact_match``; 0: as in the run.
            max_new_tokens: tokens at which such an answer is cut.

        Returns:
            ``loss``, ``accuracy`` where the task has one, the task's own metrics (``spearman``, ``f1_macro``, ...), and
            ``predictions``: examples, words of a tagger, or tokens of a language model.
        """
        source = str(data) if isinstance(data, str | Path) else rows_of(data)
        records = load_records(source, columns)
        wanted = Generation(rows=generate, max_new_tokens=max_new_tokens) if generate else None
        score = self._model.evaluate(records, wanted)
        return {**self._model.metrics(score), "predictions": score.examples}

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


def load_adapter(path: str | os.PathLike[str], *, store: str | Path | None = None) -> Adapter:
    """The adapter that a run kept, on its base: the state that ``adapters/final`` holds.

    Args:
        path: a run directory, or its ``adapters/final``.
        store: where base artifacts lie; None: the user's store.

    Raises:
        DataInvalid: this is no run.
        ResourceMissing: the store does not hold the base.
    """
    run = run_directory(path)
    if not (run / "manifest.json").is_file() and (run / "inspect.json").is_file():
        run = run.absolute().parent.parent
    if not (run / "manifest.json").is_file():
        raise DataInvalid(
            f"Expected a run, or its adapters/final, found {path}; a copied adapter loads with peft: "
            "PeftModel.from_pretrained(base, folder)."
        )
    view = read_run(run)
    convention = view.manifest.convention
    model = trained_model(run, store=None if store is None else Path(store))
    return Adapter(run, model, view.config().task.labels, Convention(convention) if convention else None)
