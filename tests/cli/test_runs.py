"""`fedpeft runs`, on runs of every state."""

from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.config.schema import template
from fedpeft.ids import RoundId
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory


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
