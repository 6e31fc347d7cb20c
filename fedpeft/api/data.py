"""``fedpeft.data_check``: look at a data set before training on it, as `fedpeft data check` does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedpeft.config.model import Task
from fedpeft.data import Tokenizer, load
from fedpeft.data.check import DataReport, check_loaded
from fedpeft.data.formats import Progress
from fedpeft.data.memory import rows_of
from fedpeft.data.tasks import task_for
from fedpeft.tasks import READ_COLUMNS

__all__ = ["data_check"]


def data_check(
    data: object,
    *,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    model: str | Path | None = None,
    max_length: int | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> DataReport:
    """Everything about a data set that decides whether a run on it makes sense.

    Args:
        data: a path, ``builtin:NAME``, or rows as ``simulate`` takes them.
        columns: our column name -> theirs, e.g. ``{"text": "note"}``.
        task: as in ``task.kind``; None: what the columns say.
        model: count this base's tokens, and check that it fits; None: words.
        max_length: tokens that an example may have; None: run.toml's default, or what the base takes.
        holdout: share to hold out.
        seed: of the held-out split.
        progress: told how many rows were read so far.

    Returns:
        The findings; ``problem_count`` rows cannot be used, and ``problems`` names the first of them.

    Raises:
        DataInvalid: it cannot be read, or its columns fit no task.
        ConfigInvalid: the base does not fit the task.
    """
    source = str(data) if isinstance(data, str | Path) else rows_of(data)
    loaded = load(source, columns, columns=READ_COLUMNS, progress=progress)
    found = task or task_for(loaded.records, unread=loaded.unused).name
    wanted = Task.model_validate({"kind": found} | ({} if max_length is None else {"max_length": max_length}))
    tokenizer: tuple[str, Tokenizer] | None = None
    advice: tuple[str, ...] = ()
    if model is not None:
        wanted, of_base, advice = _on_base(str(model), wanted, asked=max_length is not None)
        tokenizer = (str(model), of_base)
    report = check_loaded(loaded, wanted, holdout=holdout, seed=seed, tokenizer=tokenizer, column_map=columns)
    return replace(report, remarks=(*advice, *report.remarks))


def _on_base(model: str, task: Task, *, asked: bool) -> tuple[Task, Tokenizer, tuple[str, ...]]:
    """The task as the base allows it, the base's tokenizer, and what to heed; the artifact is built if it is not there.

    Args:
        model: the base.
        task: wanted.
        asked: whether the user gave its ``max_length``: then one that does not fit is refused, else it is lowered.

    Raises:
        ConfigInvalid: the base does not fit the task.
    """
    from fedpeft.base import build, default_store, load_tokenizer
    from fedpeft.base.fit import expect_fit, positions_of
    from fedpeft.base.source import CONFIG_FILE, read_json

    artifact = build(model, quantize="int8", store=default_store(), progress=None)
    positions = positions_of(read_json(artifact.path / CONFIG_FILE))
    advice: tuple[str, ...] = ()
    if not asked and task.max_length > positions:
        advice = (f"this base has {positions} positions: set task.max_length = {positions} (it is {task.max_length})",)
        task = task.model_copy(update={"max_length": positions})
    expect_fit(artifact, task)
    tokenizer: Tokenizer = load_tokenizer(artifact)
    return task, tokenizer, advice
