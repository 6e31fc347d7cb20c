"""The run directory: the one place where a run's state lives, and the order in which it becomes durable.

    runs/20261122T001231Z-airlines-7f3a/
      run.toml  resolved.toml  adapter.json  manifest.json     written once, manifest last
      metrics.jsonl                                            one row a committed round
      events.jsonl                                             one line per transition
      terms.json                                               the plan and the first state, as devices know them
      attempts.json                                            the last attempt that was begun
      pending/                                                 the round that is being opened (``pending.py``)
      checkpoints/r0004/{global.safetensors,server.json}       the first, the best and the last few
      adapters/{latest,best,final}/  summary.json  report.html

Invariants: a round is committed when its row is in ``metrics.jsonl``, and its checkpoint is durable before
that; a checkpoint without a row never happened and is removed when the run is opened; rows are in ascending
order of rounds; an attempt is counted before it begins; a round that is being opened is kept until it is committed,
and only then removed; one process writes at a time. Nothing here knows what the state's bytes mean.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from pydantic import JsonValue

from fedpeft.adapter import AdapterSpec
from fedpeft.clock import Clock, SystemClock
from fedpeft.config import RunConfig, config_digest, resolved
from fedpeft.directory_lock import DirectoryLock
from fedpeft.entropy import Entropy, os_entropy
from fedpeft.errors import IntegrityFailed
from fedpeft.files import write_file
from fedpeft.ids import RoundId
from fedpeft_server.run import journal
from fedpeft_server.run.begun import expect_attempts, expect_same, keep_terms, read_attempts, write_attempts
from fedpeft_server.run.checkpoints import Commit, read_commit, write_checkpoint
from fedpeft_server.run.pending import PendingFolder
from fedpeft_server.run.records import EventRecord, RoundMetrics, RunManifest, Summary, to_json
from fedpeft_server.run.run_view import RunView, checkpoint_folder, file_digest, read_run
from fedpeft_server.run.verdict import best_row
from fedpeft_server.run.versions import installed_versions, plugins_used

__all__ = ["RESTORED", "AdapterSlot", "Commit", "RunDirectory"]

AdapterSlot = Literal["latest", "best", "final"]
RESTORED = "restored.json"
"""In a run of a home that was put back from a backup: rounds after it may have been summed."""


class RunDirectory:
    """A run directory held for writing. Use ``create`` or ``open``; close it, or use it in a ``with``.

    Attributes:
        path: the directory.
        config: the run's configuration.
        manifest: where the run came from.
        pending: the round that is being opened.
    """

    def __init__(self, path: Path, config: RunConfig, manifest: RunManifest, lock: DirectoryLock, clock: Clock) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self._lock = lock
        self._clock = clock
        self._metrics = journal.Journal(path / "metrics.jsonl")
        self._events = journal.Journal(path / "events.jsonl")
        self._rounds: list[RoundMetrics] = []
        self.pending = PendingFolder(path)

    @classmethod
    def create(
        cls,
        config: RunConfig,
        *,
        source: str,
        adapter: AdapterSpec,
        base_digest: str,
        command: Sequence[str],
        data_digest: str = "",
        convention: str = "",
        clock: Clock | None = None,
        entropy: Entropy = os_entropy,
    ) -> Self:
        """Makes ``config.directory/<UTC>-<name>-<4 hex>/`` and holds it.

        Args:
            config: the run.
            source: run.toml as it was read, kept verbatim.
            adapter: what the global state is made of.
            base_digest: the base artifact's.
            command: the command line.
            data_digest: of the examples, where they are on this machine.
            convention: of their columns.
            clock: for the name and the records.
            entropy: for the name's last four digits.
        """
        clock = clock or SystemClock()
        now = clock.utc()
        run_id = f"{now:%Y%m%dT%H%M%SZ}-{config.run.name}-{entropy(2).hex()}"
        path = config.directory / run_id
        path.mkdir(parents=True)
        manifest = RunManifest(
            run_id=run_id,
            created=now.isoformat(timespec="seconds"),
            command=tuple(command),
            versions=dict(installed_versions()),
            platform=platform.platform(),
            seeds={"run": config.run.seed},
            base_digest=base_digest,
            adapter_digest=adapter.digest,
            config_digest=config_digest(config),
            source_digest=file_digest(source.encode()),
            data_digest=data_digest,
            convention=convention,
            plugins=plugins_used(config),
        )
        lock = DirectoryLock(path)
        try:
            (path / "checkpoints").mkdir()
            (path / "adapters").mkdir()
            write_file(path / "run.toml", source.encode())
            write_file(path / "resolved.toml", resolved(config).encode())
            write_file(path / "adapter.json", adapter.to_json().encode())
            write_attempts(path, RoundId(0), 0)
            write_file(path / "manifest.json", to_json(manifest).encode())
        except BaseException:
            lock.release()
            raise
        return cls(path, config, manifest, lock, clock)

    @classmethod
    def open(cls, path: Path, *, clock: Clock | None = None) -> Self:
        """Holds an existing run and takes back whatever a crash left half done.

        Raises:
            ResourceMissing: another process holds it.
            DataInvalid: this is no run directory.
            IntegrityFailed: a file is not what was committed, or the run is of a restored home.
        """
        view = read_run(path)
        lock = DirectoryLock(path)
        try:
            run = cls(path, view.config(), view.manifest, lock, clock or SystemClock())
            if (path / RESTORED).exists():
                raise IntegrityFailed(
                    f"Expected a run whose last round is known, found {path} restored from a backup: later rounds may "
                    "have been summed, and what they cost in privacy is in no ledger. It can be read, but not "
                    "continued; start a new run."
                )
            expect_attempts(path, run.manifest, view.rounds)
            run._recover()
        except BaseException:
            lock.release()
            raise
        return run

    def expect(self, *, adapter: AdapterSpec, base_digest: str, data_digest: str = "") -> None:
        """Refuses to go on with anything else than the run began with.

        Args:
            adapter: its specification.
            base_digest: the base artifact's.
            data_digest: of the examples; empty where they are elsewhere, or the run kept none.

        Raises:
            IntegrityFailed: naming both digests of whatever differs.
            ResourceMissing: a plug-in that it began with is not here, or in another version.
        """
        expect_same(self.path, self.manifest, adapter=adapter, base_digest=base_digest, data_digest=data_digest)
        kept, text = self.path / "adapter.json", adapter.to_json().encode()
        if not kept.is_file() or kept.read_bytes() != text:  # damaged; else a full disk is no reason to stop here
            write_file(kept, text)

    def expect_terms(self, plan: str, first: str) -> None:
        """Keeps what devices hold the run to, durably, before its first round; later refuses anything else.

        Args:
            plan: the learning plan's JSON.
            first: digest of the state of round 1, hex.

        Raises:
            IntegrityFailed: the run began with another plan or state; devices would refuse it.
        """
        keep_terms(self.path, plan, first, begun=bool(self._rounds))

    def begin_attempt(self, round_id: RoundId) -> int:
        """Counts an attempt at a round, durably, before anybody hears of it; from 1, over all starts of the run.

        Raises:
            IntegrityFailed: the round is behind the last one that was begun, or is pending: it has one survivor set.
        """
        begun, attempt = read_attempts(self.path)
        if round_id < begun or self.pending.read() is not None:
            raise IntegrityFailed(
                f"{self.path}: expected a round after {begun} or another attempt at it with nothing pending, found an "
                f"attempt at {round_id}."
            )
        attempt = attempt + 1 if round_id == begun else 1
        write_attempts(self.path, round_id, attempt)
        return attempt

    @property
    def rounds(self) -> tuple[RoundMetrics, ...]:
        """Every committed round, ascending."""
        return tuple(self._rounds)

    def commit(
        self,
        round_id: RoundId,
        state: bytes,
        server_state: Mapping[str, JsonValue],
        metrics: RoundMetrics,
        extra: Mapping[str, bytes] = MappingProxyType({}),
    ) -> RoundMetrics:
        """Makes a round durable: checkpoint first, then its row. Returns the row as written.

        Args:
            round_id: greater than every committed one, and the one that ``metrics`` names.
            state: the global state after the round.
            server_state: JSON values that the coordinator needs to go on.
            metrics: the row; its ``checkpoint`` is filled in here.
            extra: further files of the checkpoint, by name.

        Raises:
            IntegrityFailed: the round was committed before, or is not the row's.
            OSError: the disk is full or gone; then nothing was committed.
        """
        last = self._rounds[-1].round if self._rounds else -1
        if round_id <= last or round_id != metrics.round:
            raise IntegrityFailed(
                f"Expected a round after {last} and its own row, found round {round_id} with the row of "
                f"{metrics.round}; a committed round never changes."
            )
        row = replace(metrics, checkpoint=write_checkpoint(self.path, round_id, state, server_state, extra))
        self._metrics.append(to_json(row), durable=True)
        self._rounds.append(row)
        self.pending.clear()
        self._prune()
        return row

    def last_commit(self) -> Commit | None:
        """The newest committed round, checked against its row; None before the first.

        Raises:
            IntegrityFailed: its checkpoint is not what was committed.
        """
        if not self._rounds:
            return None
        return read_commit(self.path, self._rounds[-1])

    def state_after(self, round_id: RoundId) -> bytes:
        """The global state after a round whose checkpoint is kept: the last few, and the best.

        Raises:
            IntegrityFailed: its checkpoint is not what was committed.
        """
        return read_commit(self.path, next(row for row in self._rounds if row.round == round_id)).state

    def record(
        self,
        kind: str,
        *,
        round_id: RoundId | None = None,
        client: str = "",
        detail: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        """Appends one event; flushed to the system, not forced to the disk."""
        at = self._clock.utc().isoformat(timespec="milliseconds")
        event = EventRecord(at=at, kind=kind, round=round_id, client=client, detail=dict(detail or {}))
        self._events.append(to_json(event), durable=False)

    def publish_adapter(self, slot: AdapterSlot, write: Callable[[Path], None]) -> Path:
        """Replaces ``adapters/<slot>`` by what ``write`` puts into the empty folder it is given."""
        path = self.path / "adapters" / slot
        journal.publish_folder(path, write)
        return path

    def write_summary(self, summary: Summary) -> None:
        """Keeps how the run ended; opening the run again takes it back."""
        write_file(self.path / "summary.json", to_json(summary).encode())

    def view(self) -> RunView:
        """The run as a reader sees it now."""
        return read_run(self.path)

    def close(self) -> None:
        """Lets other processes write; may be called again."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> None:
        torn = self._metrics.truncate_torn() + self._events.truncate_torn()
        self._rounds = list(read_run(self.path).rounds)
        committed = {checkpoint_folder(self.path, row.round).name for row in self._rounds}
        orphans = [folder for folder in (self.path / "checkpoints").glob("*/") if folder.name not in committed]
        for folder in orphans:
            journal.remove_folder(folder)
        (self.path / "summary.json").unlink(missing_ok=True)  # the run goes on: it has not ended any more
        for slot in ("latest", "best", "final"):
            journal.recover_folder(self.path / "adapters" / slot)
        self._prune()
        pending = self.pending.read()
        if pending is None or (self._rounds and pending.round_id <= self._rounds[-1].round):
            self.pending.clear()  # the crash came between its commit and this, or in the middle of it
        self.record("run.opened", detail={"torn_bytes": torn, "checkpoints_removed": len(orphans)})

    def _prune(self) -> None:
        """Keeps the first checkpoint, the last few, and that of the best state: the row after it shows that it is."""
        best = best_row(self._rounds, self.config.rounds)
        for row in self._rounds[1 : -self.config.rounds.checkpoints_kept]:
            if best is None or row.round != best.round - 1:
                journal.remove_folder(checkpoint_folder(self.path, row.round))
