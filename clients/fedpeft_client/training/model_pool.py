"""The base model on this machine, with a run's adapter on it: loaded once, lent to one trainer at a time.

Several virtual clients share one pool: the frozen base exists once, each lending has its own adapter
tensors. A real device has a pool of one.
"""

import ctypes
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.base import ArtifactStore, BaseArtifact, is_as_verified, load_model, load_tokenizer
from fedpeft.base.fit import expect_fit
from fedpeft.data import Tokenizer
from fedpeft.entropy import derive_seed
from fedpeft.methods import attach
from fedpeft.planner import available_bytes
from fedpeft.round.plan import LearningPlan

if TYPE_CHECKING:
    from torch import nn

    from fedpeft.methods import UnionAdapter

__all__ = ["ModelPool", "Residency", "chosen_residency", "release_free_memory"]

Residency = Literal["auto", "dense", "quantized"]


def chosen_residency(artifact: BaseArtifact, wanted: Residency) -> Literal["dense", "quantized"]:
    """Dense or packed: as wanted, or by the memory that is free now. A base stored plain has nothing to unpack."""
    if wanted != "auto":
        return wanted
    plain = artifact.manifest.quantize == "none"
    return "dense" if plain or 2 * 4 * artifact.manifest.parameters <= available_bytes() else "quantized"


LEND_WAIT_S = 60.0
"""How long a trainer waits for a place before there is one more."""


class ModelPool:
    """Loads what a plan asks for on first use; a plan with another adapter or base replaces it.

    Args:
        store: where base artifacts lie.
        places: how many trainers may work at once.
        residency: ``dense`` unpacks the base once, ``quantized`` keeps it packed, ``auto`` unpacks it where it takes
            at most half of the memory that is free. What is computed is the same to the bit.
        accelerator: ``cpu`` or ``cuda``.

    Attributes:
        residency: as given.
        tokenizing: held while the tokenizer is used. A fast tokenizer keeps truncation as state of its own: two
            threads at once would cut each other's texts, and a run would not repeat.
    """

    def __init__(
        self, store: ArtifactStore, *, places: int = 1, residency: Residency = "auto", accelerator: str = "cpu"
    ) -> None:
        self._store, self._places, self._accelerator = store, places, accelerator
        self.residency: Residency = residency
        self._lock = threading.Lock()
        self.tokenizing = threading.Lock()
        self._key = ""
        self._free: queue.SimpleQueue[UnionAdapter] = queue.SimpleQueue()
        self._first: UnionAdapter | None = None
        self._tokenizer: Tokenizer | None = None
        self._artifact: BaseArtifact | None = None
        self._plain: tuple[str, nn.Module] | None = None
        self._plain_lock = threading.Lock()

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """The adapter that this plan makes on this machine's copy of the base.

        Raises:
            IntegrityFailed: the base is not in the store, or its bytes are others.
            ConfigInvalid: the plan does not fit the base.
        """
        return self._ready(plan).spec

    def initial_state(self, plan: LearningPlan) -> AdapterState:
        """Where a run of this plan begins."""
        return self._ready(plan).initial_state()

    def tokenizer(self, plan: LearningPlan) -> Tokenizer:
        """The base's tokenizer."""
        self._ready(plan)
        if self._tokenizer is None:
            raise RuntimeError("the pool has no tokenizer although it is ready")
        return self._tokenizer

    def artifact(self, plan: LearningPlan) -> BaseArtifact:
        """The base that a plan names."""
        return self._store.get(plan.base)

    def vocabulary(self, plan: LearningPlan) -> int:
        """Rows of the language model's output; 0 for any other model."""
        model = self._ready(plan).model
        return int(model.config.vocab_size) if plan.task.record.writes else 0  # type: ignore[union-attr, arg-type]

    def frozen_layers(self, plan: LearningPlan) -> int:
        """Layers below the lowest that this plan's adapter changes: what they make of an example is always the same."""
        return self._ready(plan).anatomy.cut

    def embedding_rows(self, plan: LearningPlan) -> int:
        """Token ids are below this number."""
        config = self._ready(plan).model.config
        return int(config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]

    @contextmanager
    def plain_model(self, plan: LearningPlan) -> "Iterator[nn.Module]":
        """The plan's base without any adapter, for one caller at a time: packed, so that it takes hardly any memory."""
        from fedpeft.tuning.accelerator import chosen_device

        with self._plain_lock:
            if self._plain is None or self._plain[0] != plan.base:
                model = load_model(
                    self._store.get(plan.base),
                    task=plan.task.record.form,
                    labels=plan.task.outputs,
                    head_seed=0,
                    problem_type=plan.task.record.problem_type,
                    residency="quantized",
                )
                self._plain = plan.base, model.to(chosen_device(self._accelerator))
            yield self._plain[1]

    @contextmanager
    def lend(self, plan: LearningPlan) -> "Iterator[UnionAdapter]":
        """A model with the plan's adapter for one trainer; waits while all places are taken."""
        first = self._ready(plan)
        try:
            union = self._free.get(timeout=LEND_WAIT_S)
        except queue.Empty:  # a place is held by work that was given up and hangs: others must not wait for it for ever
            union = first.replicate()
        try:
            yield union
        finally:
            self._free.put(union)
            release_free_memory()

    def _ready(self, plan: LearningPlan) -> "UnionAdapter":
        with self._lock:
            key = plan.model_copy(update={"run_id": "", "adapter_spec": "", "start": ""}).to_json()
            # What is mapped shows what is written to the file later, so a touched base is loaded, and verified, anew.
            touched = self._artifact is not None and not is_as_verified(self._artifact)
            if self._first is None or key != self._key or touched:
                self._first = None
                self._first = self._build(plan)
                self._key = key
                self._free = queue.SimpleQueue()
                for union in [self._first, *(self._first.replicate() for _ in range(self._places - 1))]:
                    self._free.put(union)
            return self._first

    def _build(self, plan: LearningPlan) -> "UnionAdapter":
        from fedpeft.tuning.accelerator import chosen_device

        device = chosen_device(self._accelerator)
        artifact = self._artifact = self._store.get(plan.base)
        expect_fit(artifact, plan.task, plan.adapter)
        self._tokenizer = load_tokenizer(artifact)
        model = load_model(
            artifact,
            task=plan.task.record.form,
            labels=plan.task.outputs,
            problem_type=plan.task.record.problem_type,
            head_seed=derive_seed(plan.seed, "head"),
            residency=chosen_residency(artifact, self.residency),
        )
        return attach(model.to(device), plan.adapter, seed=plan.seed)


def release_free_memory() -> None:
    """Gives the heap's free pages back to the machine, where the C library can (glibc's malloc_trim).

    Training frees large activations between small ones that stay; the heap would keep a third of the process.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
