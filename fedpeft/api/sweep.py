"""``fedpeft.sweep``: simulations with different settings, chosen by Optuna, until so many are done.

A folder holds a sweep: `sweep.json` says what is varied, `journal.log` is Optuna's record, `runs/` has a run directory
a trial. The same call with the same folder goes on where it was. A sweep looks at the held-out examples of every trial:
over private data each trial is a release of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.api.callbacks import RoundResult
from fedpeft.api.configuration import Config, Overrides, configured, inline, lines
from fedpeft.api.result import Result, open_run
from fedpeft.api.simulation import given_data, placed, simulate
from fedpeft.api.sweep_result import Sweep, SweepTrial
from fedpeft.api.sweep_space import Range, Space
from fedpeft.config import RunConfig, resolved
from fedpeft.directory_lock import DirectoryLock
from fedpeft.errors import (
    BudgetExhausted,
    ConfigInvalid,
    DeadlineMissed,
    FedpeftError,
    QuorumMissed,
    ResourceMissing,
    RunFailed,
)
from fedpeft.files import expect_folder, write_file

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

__all__ = ["Range", "sweep"]

STATE = "sweep.json"
JOURNAL = "journal.log"
RUN = "run"
"""Of a trial: the name of its run directory."""
REASON = "reason"
"""Of a trial that failed: why."""
RUNS = "runs"
NAME = "fedpeft"
OF_ITS_SETTINGS = (RunFailed, ConfigInvalid, DeadlineMissed, QuorumMissed, BudgetExhausted)
"""Why a trial may fail where another one would not; any other error ends the sweep, too."""
HOPELESS = 3
"""So many trials that all failed end the sweep: what is wrong is not among the varied keys."""


def sweep(
    config: Config,
    data: object = None,
    *,
    vary: Mapping[str, Space],
    trials: int = 20,
    metric: str = "loss",
    maximise: bool | None = None,
    overrides: Overrides = (),
    out: str | Path = "sweep",
    store: str | Path | None = None,
    progress: Any = False,
) -> Sweep:
    """Simulate with different settings until ``trials`` trials are complete or failed, those of earlier calls included.

    Args:
        config: as for ``simulate``.
        data: as for ``simulate``.
        vary: key of run.toml -> what it may be.
        trials: how many in all.
        metric: ``loss``, ``accuracy`` or a metric of the task, of the state that a run keeps.
        maximise: whether more is better; None: for every metric but ``loss``.
        overrides: as for ``simulate``, in every trial.
        out: the sweep's folder: a new one, or one of the same sweep.
        store: where base artifacts lie; None: the user's store.
        progress: as for ``simulate``, of each trial.

    Returns:
        All trials.

    Raises:
        ResourceMissing: Optuna is not installed, or another process works on this sweep.
        ConfigInvalid: the folder holds another sweep or one of other data, a key or value is none of run.toml's, or
            with a varied key trials would be held to different examples.
    """
    optuna = _optuna()
    folder, lower = Path(out), metric == "loss" if maximise is None else not maximise
    if not vary:
        raise ConfigInvalid("Expected a key to vary, found none.")
    _expect_same_examples(vary)
    data = _kept(data)
    always = [*lines(overrides), *given_data(data)[1]]
    base, _ = configured(config, always)
    for key, space in vary.items():  # every end and value is looked at before the first trial
        for value in (space.low, space.high) if isinstance(space, Range) else space:
            configured(config, [*always, f"{key}={inline(value, key)}"])
    said = {
        "vary": {
            key: [space.low, space.high, space.log] if isinstance(space, Range) else list(space)
            for key, space in vary.items()
        },
        "metric": metric,
        "lower_is_better": lower,
        "config": resolved(base),
        "data": _digest(placed(base, folder), data),
    }
    expect_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(folder):
        _expect_same(folder, json.loads(json.dumps(said, default=str)))
        with _quiet(optuna):
            study = _study(optuna, folder, lower=lower, seed=base.run.seed)
            while _ended(study) < trials:
                trial = _next(optuna, study, vary)
                try:
                    result = _simulated(
                        trial, config, data, vary, lines(overrides), folder / RUNS, store=store, progress=progress
                    )
                    if result.view.manifest.data_digest != said["data"]:
                        raise ConfigInvalid("Expected the sweep's examples, found others: what is varied moves them.")
                    study.tell(trial, _measured(result, metric))
                except FedpeftError as error:
                    trial.set_user_attr(REASON, str(error))
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    if not isinstance(error, OF_ITS_SETTINGS):
                        raise
                    _expect_any(study, error)
        return _seen(study, folder, metric, vary, lower=lower)


def _expect_same_examples(vary: Mapping[str, Space]) -> None:
    """Raises ConfigInvalid where trials would be held to different examples."""
    moving = [key for key in vary if key == "run.seed" or key.partition(".")[0] == "data"]
    if moving:
        raise ConfigInvalid(
            f"Expected keys that leave the held-out examples as they are, found {', '.join(moving)}: losses on "
            "different examples do not say which trial is better; make a sweep of its own for each."
        )


def _kept(data: object) -> object:
    """Every trial reads it."""
    if isinstance(data, Iterator):
        return list(data)
    if type(data) is dict:
        return {name: list(own) if isinstance(own, Iterator) else own for name, own in data.items()}
    return data


def _digest(config: RunConfig, data: object) -> str:
    """As the manifest of each trial has it."""
    from fedpeft_sim.population import populate

    return populate(config, given_data(data)[0]).digest()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ResourceMissing(
            "Expected the package optuna for a sweep, found none; pip install 'fedpeft[sweep]'."
        ) from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna says a line a trial; so do we."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _expect_same(folder: Path, said: Mapping[str, object]) -> None:
    """Begin the folder, or go on with it.

    Raises:
        ConfigInvalid: it is another sweep's.
    """
    path = folder / STATE
    if not path.exists():
        write_file(path, json.dumps(said, indent=1).encode())
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in said if there.get(key) != said[key]]
    if differing:
        raise ConfigInvalid(
            f"Expected the sweep that {folder} holds, found another {' and another '.join(differing)}; a sweep goes on "
            "with the settings that it began with. Give another folder for a new one."
        )


def _study(optuna: Any, folder: Path, *, lower: bool, seed: int) -> "Study":
    journal = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    study: Study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal),
        study_name=NAME,
        direction="minimize" if lower else "maximize",
        load_if_exists=True,
    )
    # What was drawn before a stop is not drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    return study


def _ended(study: "Study") -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _next(optuna: Any, study: "Study", vary: Mapping[str, Space]) -> "Trial":
    """The trial that a stop left behind, or a new one."""
    for left in study.trials:
        if not left.state.is_finished():
            trial: Trial = optuna.trial.Trial(study, left._trial_id)
            return trial
    return study.ask({key: _distribution(optuna, key, space) for key, space in vary.items()})


def _distribution(optuna: Any, key: str, space: Space) -> Any:
    kinds = optuna.distributions
    if not isinstance(space, Range):
        return kinds.CategoricalDistribution([inline(value, key) for value in space])
    if isinstance(space.low, int) and isinstance(space.high, int):
        return kinds.IntDistribution(space.low, space.high, log=space.log)
    return kinds.FloatDistribution(space.low, space.high, log=space.log)


def _simulated(
    trial: "Trial",
    config: Config,
    data: object,
    vary: Mapping[str, Space],
    overrides: Sequence[str],
    out: Path,
    *,
    store: str | Path | None,
    progress: Any,
) -> Result:
    """The trial's run, or the rest of it.

    Raises:
        FedpeftError: see ``simulate``.
    """
    begun = trial.user_attrs.get(RUN)
    if begun is not None and (out / begun).is_dir():
        there = open_run(out / begun)
        if there.state == "finished":
            return there
        rows = None if isinstance(data, str | Path) else data
        return simulate(resume=there.path, data=rows, store=store, progress=progress)

    def remember(result: RoundResult) -> None:
        if trial.user_attrs.get(RUN) is None:
            trial.set_user_attr(RUN, result.run.name)

    drawn = [f"{key}={_text(trial.params[key], key, space)}" for key, space in vary.items()]
    return simulate(
        config,
        data,
        overrides=[*overrides, *drawn],
        callbacks=[remember],
        out=out,
        store=store,
        progress=progress,
        command=("fedpeft.sweep", *drawn),
    )


def _text(drawn: Any, key: str, space: Space) -> str:
    """As run.toml writes it; choices are kept so."""
    return inline(drawn, key) if isinstance(space, Range) else str(drawn)


def _measured(result: Result, metric: str) -> float:
    """The metric of the state that the run kept.

    Raises:
        ConfigInvalid: the run has no such metric.
    """
    from fedpeft_server.run.verdict import kept_row

    row = kept_row(result.rounds, result.view.config().rounds)
    found = {} if row is None else {"loss": row.loss, "accuracy": row.accuracy, **row.metrics}
    value = found.get(metric)
    if value is None:
        there = ", ".join(name for name, one in found.items() if one is not None) or "none"
        raise ConfigInvalid(f"Expected a run that measures {metric}, found {there}.")
    return float(value)


def _expect_any(study: "Study", error: FedpeftError) -> None:
    """Raises the error when nothing has worked so far."""
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    if len(ended) >= HOPELESS and all(trial.value is None for trial in ended):
        raise error


def _seen(study: "Study", folder: Path, metric: str, vary: Mapping[str, Space], *, lower: bool) -> Sweep:
    states = {"COMPLETE": "complete", "FAIL": "failed"}
    named = {
        key: {} if isinstance(space, Range) else {inline(value, key): value for value in space}
        for key, space in vary.items()
    }
    trials = tuple(
        SweepTrial(
            number=one.number,
            settings={key: named[key].get(value, value) for key, value in one.params.items()},
            value=one.value,
            run=folder / RUNS / one.user_attrs[RUN] if RUN in one.user_attrs else None,
            state=states.get(one.state.name, "running"),
        )
        for one in study.trials
    )
    return Sweep(path=folder, metric=metric, trials=trials, lower_is_better=lower)
