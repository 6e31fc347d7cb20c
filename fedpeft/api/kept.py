"""Which state of its adapter a run stands for: one rule, for every command and for Python.

A run is asked, measured, served, mixed and exported with its **kept state**: what ``adapters/final`` holds. That is
the best state that was evaluated, by ``rounds.metric``, or the last one where none is better; the start, where no round
made anything better (``fedpeft_server.run.verdict.kept_round``). Of a run that has not ended it is what
``adapters/final`` would hold if the run ended now: a state counts once a round has evaluated it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.adapter import AdapterState
from fedpeft.round.plan import learning_plan
from fedpeft_server.run.run_view import RunView, kept_state, read_run

if TYPE_CHECKING:
    from fedpeft_client.inference import TrainedModel

__all__ = ["state_of", "trained_model"]


def state_of(view: RunView, *, store: Path | None) -> AdapterState:
    """The run's kept state.

    Args:
        view: the run.
        store: where base artifacts lie, from which a start is made again; None: the user's store.

    Raises:
        DataInvalid: no round was committed yet.
        IntegrityFailed: its checkpoint is not as committed.
        ResourceMissing: it is the start, and the store does not hold the base.
    """
    kept = kept_state(view)
    return _first_state(view, store) if kept is None else kept


def trained_model(run: Path, *, store: Path | None) -> "TrainedModel":
    """The base of a run with its kept state, ready to answer; as ``state_of``.

    Raises:
        ResourceMissing: the store does not hold the base.
    """
    from fedpeft_client.inference import TrainedModel

    view = read_run(run)
    return TrainedModel.load(view.config(), state_of(view, store=store), base=view.manifest.base_digest, store=store)


def _first_state(view: RunView, store: Path | None) -> AdapterState:
    """Where the run began, made again from its configuration and base."""
    from fedpeft.base import ArtifactStore, default_store
    from fedpeft.export.earlier_runs import with_sources
    from fedpeft_client.training.model_pool import ModelPool

    config = view.config()
    pool = ModelPool(ArtifactStore(store or default_store()))
    made = pool.initial_state(learning_plan(config, run_id="", base=view.manifest.base_digest, adapter_spec=""))
    return with_sources(made, config.adapter, config.base.adapters)
