"""`fedpeft runs`, on runs of every state."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.config.schema import template
from fedpeft.errors import IntegrityFailed
from fedpeft.ids import RoundId
from fedpeft_server.run.records import RoundMetrics, Summary
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.versions import changed_versions, installed_versions


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one round whose process has ended."""
    config = parse(template(), source="x", simulation=True).model_copy(update={"directory": tmp_path / "runs"})
    spec = AdapterSpec(blocks=())
    with RunDirectory.create(config, source="x = 1", adapter=spec, base_digest="b", command=("fedpeft",)) as run:
        row = RoundMetrics(
            round=1,
            loss=0.5,
            accuracy=0.75,
            evaluators=4,
            devices_invited=3,
            devices_ready=3,
            devices_survived=2,
            bytes_up=1_500_000,
            bytes_down=2,
            seconds=1.0,
        )
        run.commit(RoundId(1), b"state", {}, row)
        return run.path


def test_ls_tells_state_rounds_and_accuracy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "ls", str(run.parent)]) == 0
    assert capsys.readouterr().out == f"{run.name}  interrupted     1 round   accuracy 75.0%\n"


def test_ls_of_nothing_says_how_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "ls", str(tmp_path)]) == 0
    assert "fedpeft simulate" in capsys.readouterr().out
    assert main(["runs", "ls", str(tmp_path / "absent")]) == 3


def test_ls_names_a_damaged_run_and_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "manifest.json").write_text("{}")
    assert main(["runs", "ls", str(run.parent)]) == 0
    assert "damaged" in capsys.readouterr().out


def test_show_has_a_line_a_round(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "round    1  loss  0.500  accuracy 75.0%  devices 2/3  up 1.50 MB" in shown


def test_report_is_written_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "<!doctype html>" in (run / "report.html").read_text()


def test_verify_ends_with_six_when_a_digest_does_not_hold(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "verify", str(run)]) == 0
    (run / "run.toml").write_text("changed")
    (run / "checkpoints" / "r0001" / "server.json").unlink()
    assert main(["runs", "verify", str(run)]) == 6
    error = capsys.readouterr().err
    assert "run.toml: expected sha256:" in error
    assert "server.json: expected sha256:" in error


@pytest.mark.parametrize("command", ["show", "report", "verify"])
def test_what_is_no_run_ends_with_three(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        assert main(["runs", command, str(path)]) == 3
    assert "Traceback" not in capsys.readouterr().err


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no UTF-8": lambda path: path.write_bytes(path.read_bytes()[:9] + b"\xff" + path.read_bytes()[9:]),
    "another value": lambda path: path.write_bytes(b"null\n"),
    "a list": lambda path: path.write_bytes(b'[1, {"a": 2}]\n'),
    "deep": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "numbers too large": lambda path: path.write_bytes(b'{"round": 1e999, "schema_version": %s}\n' % (b"9" * 30)),
    "missing": lambda path: path.unlink(missing_ok=True),
    "a folder": _folder,
    "a link to itself": _loop,
}
FILES = ("manifest.json", "run.toml", "resolved.toml", "adapter.json", "metrics.jsonl", "events.jsonl", "summary.json")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_run_is_named_by_every_command_that_reads_it(
    damage: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory.open(run) as begun:
        begun.record("run.looked-at")
        begun.write_summary(Summary(outcome="failed", rounds=1, seconds=1.0, bytes_up=1, bytes_down=1))
    for name in FILES:
        damaged = tmp_path / name / "damaged"
        shutil.copytree(run, damaged)
        DAMAGES[damage](damaged / name)
        for command in (("show",), ("show", "--json"), ("compare", str(run)), ("report",), ("verify",)):
            code = main(["runs", command[0], str(damaged), *command[1:]])
            said = capsys.readouterr()
            assert code in (0, 3, 6), (name, command, said)
            assert "Traceback" not in said.err
            assert code == 0 or name in said.err, (name, command, said)
            assert "Errno" not in said.err


def test_a_run_that_cannot_be_read_hides_no_other_in_the_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, damage in enumerate(DAMAGES.values()):
        for name in ("manifest.json", "metrics.jsonl"):
            shutil.copytree(run, other := run.with_name(f"{name}-{number}"))
            damage(other / name)
    for options in ((), ("--json",)):
        assert main(["runs", "ls", str(run.parent), *options]) == 0
        assert run.name in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "zeros", "another value", "deep", "missing"])
def test_a_run_whose_rows_are_lost_is_refused_and_keeps_its_checkpoints(damage: str, run: Path) -> None:
    """Going on from no rows would take each checkpoint for one that a crash left before its row."""
    with RunDirectory.open(run) as begun:
        for number in (2, 3):
            begun.begin_attempt(RoundId(number))
            begun.commit(RoundId(number), b"state", {}, replace(begun.rounds[0], round=number))
    DAMAGES[damage](run / "metrics.jsonl")
    kept = sorted(run.glob("checkpoints/*/*"))
    with pytest.raises(IntegrityFailed, match="rows"):
        RunDirectory.open(run)
    assert sorted(run.glob("checkpoints/*/*")) == kept


def test_a_run_at_which_another_process_is_at_work_is_not_resumed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory.open(run):
        assert main(["simulate", "--resume", str(run)]) == 8
    assert f"process {os.getpid()} writing to it" in capsys.readouterr().err


def test_versions_other_than_a_run_began_with_are_named() -> None:
    assert changed_versions(installed_versions()) == ""
    said = changed_versions({**installed_versions(), "torch": "1.0"})
    assert f"torch 1.0, found {installed_versions()['torch']}" in said
    assert said.count("found") == 1
