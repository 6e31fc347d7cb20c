"""Crash points of a commit: after each of them the run reopens at the last row and can go on."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.config import parse
from fedpeft.directory_lock import DirectoryLock
from fedpeft.errors import DataInvalid, IntegrityFailed, ResourceMissing
from fedpeft.ids import BlockId, RoundId
from fedpeft.testing.runs import toy_run
from fedpeft_server.run import run_directory
from fedpeft_server.run.records import RoundMetrics, Summary
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import list_runs, read_run, verify_run

SOURCE = toy_run(
    """
[rounds]
checkpoints_kept = 2
""",
    clients=3,
    name="small",
    labels=(),
)
SPEC = AdapterSpec(
    blocks=(BlockSpec(block_id=BlockId("head"), method="head", tensors=(TensorSpec(name="w", shape=(2,)),)),)
)


class Noon:
    """A clock that stands still."""

    def monotonic_s(self) -> float:
        return 0.0

    def utc(self) -> datetime:
        return datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def create(parent: Path, data_digest: str = "") -> RunDirectory:
    config = parse(SOURCE, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    return RunDirectory.create(
        config,
        source=SOURCE,
        adapter=SPEC,
        base_digest="sha256:b",
        command=("fedpeft", "simulate"),
        data_digest=data_digest,
        clock=Noon(),
    )


def row(round_id: int) -> RoundMetrics:
    return RoundMetrics(
        round=round_id,
        loss=1.0 / (round_id + 1),
        accuracy=0.5,
        evaluators=10,
        devices_invited=3,
        devices_ready=3,
        devices_survived=3,
        bytes_up=100,
        bytes_down=200,
        seconds=1.5,
    )


def commit(run: RunDirectory, *round_ids: int) -> None:
    for round_id in round_ids:
        run.commit(RoundId(round_id), b"state %d" % round_id, {"step": round_id}, row(round_id))


def committed(parent: Path, *round_ids: int) -> Path:
    with create(parent) as run:
        commit(run, *round_ids)
        return run.path


def file(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def kept(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "checkpoints").iterdir())


def test_a_run_is_named_by_time_name_and_four_digits(tmp_path: Path) -> None:
    path = committed(tmp_path)
    assert path.name.startswith("20261122T120000Z-small-")
    assert len(path.name.rsplit("-", 1)[1]) == 4
    assert (path / "run.toml").read_text() == SOURCE
    assert list_runs(tmp_path) == (path,)


def test_the_last_commit_comes_back_whole(tmp_path: Path) -> None:
    with RunDirectory.open(committed(tmp_path, 0, 1, 2)) as run:
        last = run.last_commit()
        assert last is not None
        assert (last.round_id, last.state, last.server_state) == (2, b"state 2", {"step": 2})
        assert last.metrics.loss == row(2).loss


def test_a_new_run_has_no_commit(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        assert run.last_commit() is None


def test_the_reopened_config_is_the_one_the_run_began_with(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        config, path = run.config, run.path
    with RunDirectory.open(path) as run:
        assert run.config == config


def test_the_first_and_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    assert kept(committed(tmp_path, 0, 1, 2, 3, 4)) == ["r0000", "r0003", "r0004"]


def test_a_checkpoint_without_a_row_never_happened(tmp_path: Path) -> None:
    path = committed(tmp_path, 1, 2)
    rows = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(rows[0])
    with RunDirectory.open(path) as run:
        last = run.last_commit()
        assert last is not None
        assert last.round_id == 1
        assert kept(path) == ["r0001"]
        commit(run, 2)
    assert verify_run(path) == ()


def test_a_half_written_checkpoint_is_removed(tmp_path: Path) -> None:
    path = committed(tmp_path, 1)
    (path / "checkpoints" / ".r0002.tmp").mkdir()
    (path / "checkpoints" / ".r0002.tmp" / "global.safetensors").write_bytes(b"hal")
    with RunDirectory.open(path) as run:
        commit(run, 2)
    assert kept(path) == ["r0001", "r0002"]


def test_a_row_torn_at_any_byte_is_no_commit(tmp_path: Path) -> None:
    path = committed(tmp_path, 1, 2)
    whole = (path / "metrics.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        (path / "metrics.jsonl").write_bytes(whole[:size])
        assert [seen.round for seen in read_run(path).rounds] == [1]
    with RunDirectory.open(path) as run:
        assert [seen.round for seen in run.rounds] == [1]
        assert (path / "metrics.jsonl").read_bytes() == whole[:first]


def test_a_commit_that_the_disk_refuses_leaves_no_trace(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        commit(run, 1)
        before = (run.path / "metrics.jsonl").read_bytes()
        (run.path / "checkpoints" / ".r0002.tmp").write_bytes(b"in the way")
        with pytest.raises(OSError, match="r0002"):
            commit(run, 2)
        assert (run.path / "metrics.jsonl").read_bytes() == before
        (run.path / "checkpoints" / ".r0002.tmp").unlink()
        commit(run, 2)
        assert [seen.round for seen in run.rounds] == [1, 2]


@pytest.mark.parametrize(("round_id", "row_of"), [(2, 2), (1, 1), (4, 3)])
def test_a_committed_round_never_changes(tmp_path: Path, round_id: int, row_of: int) -> None:
    with create(tmp_path) as run:
        commit(run, 1, 2)
        with pytest.raises(IntegrityFailed, match="never changes"):
            run.commit(RoundId(round_id), b"other", {}, row(row_of))
        last = run.last_commit()
        assert last is not None
        assert last.state == b"state 2"


def test_a_damaged_checkpoint_is_refused_and_named(tmp_path: Path) -> None:
    path = committed(tmp_path, 1)
    (path / "checkpoints" / "r0001" / "global.safetensors").write_bytes(b"other")
    with RunDirectory.open(path) as run, pytest.raises(IntegrityFailed, match=r"r0001/global\.safetensors"):
        run.last_commit()
    assert [problem.where.rsplit("/", 1)[1] for problem in verify_run(path)] == ["global.safetensors"]


def test_a_damaged_row_in_the_middle_is_refused_not_cut(tmp_path: Path) -> None:
    path = committed(tmp_path, 1, 2)
    rows = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damaged = rows[0][:20] + b"\n" + rows[1]
    (path / "metrics.jsonl").write_bytes(damaged)
    with pytest.raises(IntegrityFailed, match="line 1"):
        RunDirectory.open(path)
    assert (path / "metrics.jsonl").read_bytes() == damaged


def test_a_row_of_another_version_is_refused_not_cut(tmp_path: Path) -> None:
    path = committed(tmp_path, 1)
    later = json.dumps({**json.loads((path / "metrics.jsonl").read_text()), "schema_version": 2}) + "\n"
    (path / "metrics.jsonl").write_text(later)
    with pytest.raises(IntegrityFailed, match="schema version"):
        RunDirectory.open(path)
    assert (path / "metrics.jsonl").read_text() == later


def test_a_changed_configuration_is_refused(tmp_path: Path) -> None:
    path = committed(tmp_path, 1)
    resolved = path / "resolved.toml"
    resolved.write_text(resolved.read_text().replace("local_steps = 12", "local_steps = 13"))
    with pytest.raises(IntegrityFailed, match=r"resolved\.toml"):
        RunDirectory.open(path)
    assert len(verify_run(path)) == 1


def test_another_base_or_adapter_is_refused(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.expect(adapter=SPEC, base_digest="sha256:b")
        with pytest.raises(IntegrityFailed, match="base"):
            run.expect(adapter=SPEC, base_digest="sha256:c")
        with pytest.raises(IntegrityFailed, match="adapter"):
            run.expect(adapter=AdapterSpec(blocks=()), base_digest="sha256:b")


def test_going_on_writes_nothing_but_a_damaged_adapter_anew(tmp_path: Path) -> None:
    """So a run goes on where a disk is full, and its files are as old as they are."""
    with create(tmp_path) as run:
        kept = run.path / "adapter.json"
        before, text = kept.stat(), kept.read_bytes()
        run.expect(adapter=SPEC, base_digest="sha256:b")
        assert kept.stat() == before
        kept.write_bytes(b"{")
        run.expect(adapter=SPEC, base_digest="sha256:b")
        assert kept.read_bytes() == text


def test_a_run_that_could_not_be_begun_is_held_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, payload: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(run_directory, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        create(tmp_path)
    [path] = tmp_path.iterdir()
    DirectoryLock(path).release()


def test_other_examples_than_the_run_began_with_are_refused(tmp_path: Path) -> None:
    with create(tmp_path, data_digest="sha256:d") as run:
        run.expect(adapter=SPEC, base_digest="sha256:b", data_digest="sha256:d")
        with pytest.raises(IntegrityFailed, match="data: expected sha256:d, found sha256:e") as caught:
            run.expect(adapter=SPEC, base_digest="sha256:b", data_digest="sha256:e")
        assert caught.value.exit_code == 6
    with create(tmp_path / "old") as run:  # kept no digest: nothing to compare
        run.expect(adapter=SPEC, base_digest="sha256:b", data_digest="sha256:e")


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        assert read_run(run.path).state == "running"
        code = (
            "import pathlib; from fedpeft_server.run.run_directory import *;"
            f"RunDirectory.open(pathlib.Path({str(run.path)!r}))"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=_env())
        assert "ResourceMissing" in other.stderr
        assert f"process {os.getpid()}" in other.stderr
        with pytest.raises(ResourceMissing, match=str(os.getpid())):
            RunDirectory.open(run.path)
    assert read_run(run.path).state == "interrupted"
    RunDirectory.open(run.path).close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path = committed(tmp_path)
    code = (
        "import os, signal, pathlib; from fedpeft_server.run.run_directory import *;"
        f"run = RunDirectory.open(pathlib.Path({str(path)!r})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env=_env()).returncode == -9
    RunDirectory.open(path).close()


def test_a_torn_event_is_forgotten_and_the_next_one_is_whole(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.record("round.started", round_id=RoundId(1))
    with (run.path / "events.jsonl").open("ab") as events:
        events.write(b'{"schema_version":1,"at":"20')
    with RunDirectory.open(run.path) as again:
        again.record("round.started", round_id=RoundId(2), detail={"invited": 3})
    seen = read_run(run.path).events
    assert [(event.kind, event.round) for event in seen] == [
        ("round.started", 1),
        ("run.opened", None),
        ("round.started", 2),
    ]
    assert seen[1].detail["torn_bytes"] == 28


def test_an_adapter_is_replaced_whole(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.publish_adapter("latest", file("old", "1"))
        path = run.publish_adapter("latest", file("new", "2"))
        assert [file.name for file in path.iterdir()] == ["new"]
        assert [folder.name for folder in path.parent.iterdir()] == ["latest"]


def test_an_adapter_whose_replacement_was_cut_comes_back(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        path = run.publish_adapter("final", file("old", "1"))
    path.rename(path.with_name(".final.old"))
    path.with_name(".final.tmp").mkdir()
    RunDirectory.open(run.path).close()
    assert [folder.name for folder in path.parent.iterdir()] == ["final"]
    assert (path / "old").read_text() == "1"


def test_a_run_is_over_when_its_summary_says_so_and_not_when_it_is_opened_again(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        commit(run, 1)
        run.write_summary(Summary(outcome="finished", rounds=1, seconds=1.0, bytes_up=1, bytes_down=2))
        assert run.view().state == "finished"
    with RunDirectory.open(run.path) as again:
        assert again.view().state == "running"


def test_a_run_whose_creation_was_cut_is_no_run(tmp_path: Path) -> None:
    path = committed(tmp_path)
    (path / "manifest.json").unlink()  # written last
    assert list_runs(tmp_path) == ()
    with pytest.raises(DataInvalid):
        RunDirectory.open(path)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="runs ls"):
        RunDirectory.open(tmp_path)
    with pytest.raises(DataInvalid, match="Expected a directory of runs"):
        list_runs(tmp_path / "absent")


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
