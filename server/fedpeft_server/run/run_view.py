"""A run directory as a reader sees it: no lock, nothing changed, a torn last line left out.

Safe beside a running writer: every file is replaced whole or appended to by whole lines.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.config import RunConfig, parse
from fedpeft.directory_lock import holder
from fedpeft.errors import ConfigInvalid, DataInvalid, FedpeftError, IntegrityFailed, Problem, SpecMismatch
from fedpeft.plugins import expect_installed
from fedpeft_server.run.journal import Journal
from fedpeft_server.run.records import EventRecord, RoundMetrics, RunManifest, Summary, from_json
from fedpeft_server.run.verdict import kept_round

__all__ = [
    "GLOBAL_STATE",
    "RunView",
    "checkpoint_folder",
    "checkpoint_problems",
    "file_digest",
    "kept_state",
    "last_state",
    "list_runs",
    "read_run",
    "verify_run",
]


GLOBAL_STATE = "global.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What a run directory held when it was read.

    Args:
        path: the directory.
        manifest: where the run came from.
        source: run.toml as it was given.
        resolved: resolved.toml.
        rounds: every committed round, ascending.
        events: every recorded transition.
        summary: how it ended; None while it has not.
        writer: the process that writes to it now, if any.
    """

    path: Path
    manifest: RunManifest
    source: str
    resolved: str
    rounds: tuple[RoundMetrics, ...]
    events: tuple[EventRecord, ...]
    summary: Summary | None
    writer: str | None

    @property
    def state(self) -> str:
        """The summary's outcome; without one, ``running`` or, when no process holds the run, ``interrupted``."""
        if self.summary is not None:
            return self.summary.outcome
        return "interrupted" if self.writer is None else "running"

    def config(self) -> RunConfig:
        """The run's configuration, which must be the one it began with.

        Raises:
            IntegrityFailed: resolved.toml was changed.
            ResourceMissing: it needs a plug-in that is not here.
        """
        found = file_digest(self.resolved.encode())
        if found != self.manifest.config_digest:
            raise IntegrityFailed(
                f"{self.path / 'resolved.toml'}: expected {self.manifest.config_digest}, found {found}; "
                "a run keeps its configuration: restore the file, or start a new run with the changed one."
            )
        try:
            config = parse(self.resolved, source=str(self.path / "resolved.toml"), simulation=True)
        except ConfigInvalid:
            expect_installed(self.manifest.plugins)  # the likelier cause, where there are some
            raise
        return config.model_copy(update={"directory": self.path.parent})


def read_run(path: Path) -> RunView:
    """Reads a run directory.

    Raises:
        DataInvalid: this is no run directory.
        IntegrityFailed: a record is not of this schema, the rounds are not ascending, or some of them are lost.
    """
    if not (path / "manifest.json").is_file():
        raise DataInvalid(
            f"Expected a run directory with a manifest.json, found none at {path}; see `fedpeft runs ls`."
        )
    metrics, events = path / "metrics.jsonl", path / "events.jsonl"
    place = path / "summary.json"  # this and the checkpoints first: a writer adds rows meanwhile
    summary = from_json(Summary, _text(place), where=str(place)) if os.path.lexists(place) else None
    kept = _newest_checkpoint(path)
    rounds = tuple(
        from_json(RoundMetrics, line, where=f"{metrics}:{number}")
        for number, line in enumerate(Journal(metrics).lines(), 1)
    )
    numbers = [row.round for row in rounds]
    if numbers != sorted(set(numbers)):
        raise IntegrityFailed(f"{metrics}: expected ascending rounds, found {numbers}; restore it from a copy.")
    _expect_rows(path, rounds, kept, summary)
    return RunView(
        path=path,
        manifest=from_json(RunManifest, _text(path / "manifest.json"), where=str(path / "manifest.json")),
        source=_text(path / "run.toml"),
        resolved=_text(path / "resolved.toml"),
        rounds=rounds,
        events=tuple(
            from_json(EventRecord, line, where=f"{events}:{number}")
            for number, line in enumerate(Journal(events).lines(), 1)
        ),
        summary=summary,
        writer=holder(path),
    )


def list_runs(parent: Path) -> tuple[Path, ...]:
    """The run directories in ``parent``, oldest first."""
    if not parent.is_dir():
        raise DataInvalid(f"Expected a directory of runs at {parent}, found none; name another, or start a run.")
    return tuple(sorted(path.parent for path in parent.glob("*/manifest.json")))


def checkpoint_folder(path: Path, round_id: int) -> Path:
    """Where a round's checkpoint is kept."""
    return path / "checkpoints" / f"r{round_id:04d}"


def checkpoint_problems(path: Path, row: RoundMetrics) -> tuple[Problem, ...]:
    """What is wrong with a round's checkpoint; nothing when it is as committed."""
    problems: list[Problem] = []
    for name, digest in row.checkpoint.items():
        file = checkpoint_folder(path, row.round) / name
        found = file_digest(file.read_bytes()) if file.is_file() else "nothing"
        if found != digest:
            problems.append(Problem(where=str(file), expected=digest, found=found, remedy="Restore it from a copy."))
    return tuple(problems)


def last_state(view: RunView) -> AdapterState:
    """The global adapter state of the last committed round.

    Raises:
        DataInvalid: no round was committed yet.
        IntegrityFailed: its checkpoint is not as committed.
    """
    if not view.rounds:
        raise DataInvalid(f"Expected a run with a committed round, found none in {view.path}; resume it first.")
    return _state_of(view, view.rounds[-1])


def kept_state(view: RunView) -> AdapterState | None:
    """The state that ``adapters/final`` holds (``verdict.kept_round``); None: the one that the run began with.

    Raises:
        DataInvalid: no round was committed yet.
        IntegrityFailed: its checkpoint is not as committed.
    """
    kept = kept_round(view.rounds, view.config().rounds)
    if kept is None:
        return last_state(view)
    return next((_state_of(view, row) for row in view.rounds if row.round == kept), None)


def _state_of(view: RunView, row: RoundMetrics) -> AdapterState:
    if problems := checkpoint_problems(view.path, row):
        raise IntegrityFailed(f"Expected checkpoint {row.round} as committed, found another.", problems=problems)
    spec = _spec(view.path)
    payload = (checkpoint_folder(view.path, row.round) / GLOBAL_STATE).read_bytes()
    return AdapterState.from_safetensors(spec, payload)


def verify_run(path: Path) -> tuple[Problem, ...]:
    """Checks every digest that the run recorded: configuration, adapter specification, kept checkpoints.

    Raises:
        DataInvalid: this is no run directory.
    """
    try:
        view = read_run(path)
        view.config()
        adapter = _spec(path)
    except IntegrityFailed as error:
        return (_problem(path, error),)
    problems: list[Problem] = []
    pairs = {
        "adapter.json": (view.manifest.adapter_digest, adapter.digest),
        "run.toml": (view.manifest.source_digest, file_digest(view.source.encode())),
    }
    for name, (expected, found) in pairs.items():
        if expected != found:
            problems.append(Problem(where=str(path / name), expected=expected, found=found))
    for index, row in enumerate(view.rounds):
        last = index == len(view.rounds) - 1
        if last or checkpoint_folder(path, row.round).exists():
            problems += checkpoint_problems(path, row)
    return tuple(problems)


def _spec(path: Path) -> AdapterSpec:
    try:
        return AdapterSpec.from_json(_text(path / "adapter.json"))
    except SpecMismatch as error:
        raise _damaged(path / "adapter.json", f"another text ({error})") from error


def _expect_rows(path: Path, rounds: Sequence[RoundMetrics], kept: int, summary: Summary | None) -> None:
    """Refuses a metrics.jsonl that has lost rows: a run that went on from there would remove what they committed.

    Args:
        kept: the newest round that had a checkpoint before the rows were read; 0: none. It may be one ahead of the
            rows: a crash, or a writer at work, between the two.
    """
    last = rounds[-1].round if rounds else 0
    if kept > last + 1 or (summary is not None and summary.rounds > len(rounds)):
        at_least = max(kept - 1, 0 if summary is None else summary.rounds)
        raise _damaged(path / "metrics.jsonl", f"{len(rounds)} whole rows where {at_least} or more were committed")


def _newest_checkpoint(path: Path) -> int:
    names = [folder.name[1:] for folder in (path / "checkpoints").glob("r*/")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _problem(path: Path, error: FedpeftError) -> Problem:
    return Problem(where=str(path), expected="a run as it was recorded", found=str(error))


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, f"no UTF-8 at byte {error.start}") from error


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise _damaged(path, "something that is no file" if path.exists() else "nothing")
    return path.read_bytes()


def _damaged(path: Path, found: str) -> IntegrityFailed:
    return IntegrityFailed(f"Expected {path} as the run wrote it, found {found}; restore it from a copy.")


def file_digest(payload: bytes) -> str:
    """SHA-256 as the records write it: ``sha256:`` and hex."""
    return f"sha256:{hashlib.sha256(payload).hexdigest()}"
