"""The adapters that are served: those of one base that can share a batch on one model, any other on its own model.

Whether an adapter can share is tried: beside another one in a batch it must give the logits that it gives alone.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fedpeft.adapter import AdapterState
from fedpeft.base import load_model
from fedpeft.base.architecture import values_of
from fedpeft.config import RunConfig
from fedpeft.errors import ConfigInvalid, FedpeftError
from fedpeft.tasks import Convention, Target, TaskRecord
from fedpeft.tasks.form import SINGLE
from fedpeft_client.inference import Answerer, TrainedModel
from fedpeft_client.serving.rows import RowAdapters, factors_of

__all__ = ["AdapterRegistry", "BatchedModel", "Served", "Snapshot", "Source", "expect_served"]

_LOG = logging.getLogger(__name__)
_CLOSE = 1e-3  # of the largest logit


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run as it is now.

    Args:
        config: its configuration.
        state: of its adapter.
        base: digest of the base artifact.
        convention: of a language model's examples; None: not known.
    """

    config: RunConfig
    state: AdapterState
    base: str
    convention: Convention | None


class Source(Protocol):
    """Where an adapter comes from."""

    @property
    def name(self) -> str:
        """What requests call it."""
        ...

    def version(self) -> str:
        """Another one when ``read`` would give something else."""
        ...

    def read(self) -> Snapshot:
        """The adapter as it is now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One adapter.

    Args:
        name: of requests.
        version: of the source.
        batched: the model that it runs on.
        place: its number among that model's adapters.
        task: what it was trained for.
        outputs: their names; empty for a language model.
        longest: tokens at which a text to classify is cut.
        convention: how it is asked.
        pairs: whether it was trained on pairs of texts; None: nothing says so.
    """

    name: str
    version: str
    batched: "BatchedModel"
    place: int
    task: TaskRecord
    outputs: tuple[str, ...]
    longest: int
    convention: Convention
    pairs: bool | None = None

    @property
    def target(self) -> Target:
        """What its outputs say."""
        return self.task.target


class BatchedModel:
    """One model whose rows may belong to several adapters. Used by the engine's thread alone.

    Args:
        asked: makes what is asked, of the model whose ``choose`` it is to call.
        rows: None: one adapter for all rows.
    """

    def __init__(self, asked: "Callable[[BatchedModel], Answerer]", rows: RowAdapters | None) -> None:
        self.rows = rows
        self._places: list[int] = [0]
        self.asked = asked(self)

    @classmethod
    def shared(cls, model: TrainedModel) -> "BatchedModel":
        """On the base of ``model``, without any adapter yet."""
        task = model.config.task
        # Every adapter brings its own head, so this one's values do not matter.
        kind = task.record.problem_type or SINGLE
        base = load_model(model.artifact, task=task.record.form, labels=task.outputs, head_seed=0, problem_type=kind)
        outputs = task.outputs if task.record.adds_head else ()
        return cls(
            lambda batched: Answerer(base, model.tokenizer, labels=outputs, choose_rows=batched.choose),
            RowAdapters(base),
        )

    def begin(self, places: Sequence[int]) -> None:
        """The rows of the work that follows belong to these adapters."""
        self._places = list(places)

    def choose(self, rows: Sequence[int]) -> None:
        """The rows of the next forward pass, by their place in the work."""
        if self.rows is not None and len(self.rows):
            self.rows.choose([self._places[row] if row < len(self._places) else self._places[0] for row in rows])


class AdapterRegistry:
    """All served adapters by name; replaced whole entries only, so that readers need no lock.

    Args:
        store: where base artifacts lie.
    """

    def __init__(self, store: Path | None) -> None:
        self._store = store
        self._shared: dict[tuple[str, str], BatchedModel] = {}
        self.served: dict[str, Served] = {}

    def prepare(self, source: Source) -> "Callable[[], Served]":
        """Read a source, which takes seconds, on any thread; what it returns is called by the engine's thread.

        Raises:
            FedpeftError: the source cannot be read, or its base is not there.
        """
        version = source.version()
        found = source.read()
        model = TrainedModel.load(found.config, found.state, base=found.base, store=self._store)
        return lambda: self._put(source.name, version, model, found.convention)

    def _put(self, name: str, version: str, model: TrainedModel, convention: Convention | None) -> Served:
        task, before = model.config.task, self.served.get(name)
        own = model.answerer(convention)
        batched, place = self._placed(model, before)
        if batched is None:
            batched, place = BatchedModel(lambda _: own, None), 0
        self.served[name] = Served(
            name=name,
            version=version,
            batched=batched,
            place=place,
            task=task.record,
            outputs=own.labels,
            longest=task.max_length,
            convention=own.convention,
            pairs=own.pairs,
        )
        return self.served[name]

    def _placed(self, model: TrainedModel, before: Served | None) -> tuple[BatchedModel | None, int]:
        """The shared model and the adapter's place on it; None: it cannot share."""
        factors = factors_of(model.union)
        if factors is None:
            return None, 0
        key = (model.artifact.digest, model.config.task.record.form)
        batched = self._shared.get(key) or BatchedModel.shared(model)
        if batched.rows is None:
            return None, 0
        try:
            place = batched.rows.put(
                factors, before.place if before is not None and before.batched is batched else None
            )
            if not _gives_the_same(batched, place, model):
                return None, 0
        except (FedpeftError, RuntimeError, ValueError, IndexError) as error:
            _LOG.info("this adapter is served alone: %s", error)
            return None, 0
        self._shared[key] = batched
        return batched, place


@torch.no_grad()
def _gives_the_same(batched: BatchedModel, place: int, model: TrainedModel) -> bool:
    """Whether the adapter's logits beside another one's are those of its own model."""
    inputs = model.probe_inputs()
    size = len(inputs["input_ids"])
    expected = _logits(model.union.model, inputs)
    others = [0 if row % 2 and place else place for row in range(size)]
    for places in (others, [place] * size):
        if batched.rows is None:
            return False
        batched.rows.choose(places)
        mine = torch.tensor([one == place for one in places])
        found = _logits(batched.rows.model, inputs)[mine][..., : expected.shape[-1]]
        if float((found - expected[mine]).abs().max()) > _CLOSE * max(1.0, float(expected.abs().max())):
            return False
    return True


def _logits(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return values_of(model(**inputs)).float()


def expect_served(registry: AdapterRegistry, name: str) -> Served:
    """The adapter of this name; without a name, the only one.

    Raises:
        ConfigInvalid: there is none.
    """
    if not name and len(registry.served) == 1:
        return next(iter(registry.served.values()))
    if name not in registry.served:
        raise ConfigInvalid(f"Expected a model of {', '.join(sorted(registry.served))}, found {name!r:.80}.")
    return registry.served[name]
