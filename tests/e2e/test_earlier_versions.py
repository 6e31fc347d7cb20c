"""What earlier versions left on a disk: runs are read and used, and go on where they may; homes open."""

import json
import tarfile
from pathlib import Path

import pytest

import fedpeft
from fedpeft.cli import main
from fedpeft_server.run.run_view import RunView, read_run, verify_run

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

LEFT = Path(__file__).parent / "earlier"


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(LEFT / f"{name}.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def only_run(folder: Path) -> RunView:
    (run,) = (folder / "runs").iterdir()
    return read_run(run)


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was there before methods moved to the catalogue, as the working directory."""
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return unpacked("before-the-catalogue", tmp_path)


def test_a_run_of_before_the_catalogue_is_read_and_its_adapter_used(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = only_run(before)
    assert [(row.round, row.devices_survived, row.evaluators) for row in view.rounds] == [(n, 4, 1) for n in (1, 2, 3)]
    assert [row.accuracy for row in view.rounds] == [0.5, 0.7, 0.7]
    assert verify_run(view.path) == ()
    assert main(["runs", "show", str(view.path)]) == 0
    assert "3 rounds committed" in capsys.readouterr().out
    assert main(["runs", "report", str(view.path)]) == 0
    export = before / "exported"
    assert main(["adapter", "export", str(view.path), "--out", str(export)]) == 0
    assert main(["adapter", "inspect", str(export)]) == 0
    capsys.readouterr()
    assert main(["adapter", "predict", str(view.path), "red cat runs"]) == 0
    assert capsys.readouterr().out.split()[0] in ("yes", "no")


def test_a_run_that_kept_no_attempts_is_not_resumed_and_says_why(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could have the same inputs summed twice (ADR 0011)."""
    run = only_run(before).path
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["simulate", "--resume", str(run)]) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "this run was begun by an earlier version, which did not keep its promises across a restart" in said
    assert {path: path.read_bytes() for path in kept} == kept


def test_homes_of_before_the_catalogue_open(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(before / "coordinator")]
    assert main(["coordinator", "clients", "ls", *home]) == 0
    assert capsys.readouterr().out.split()[0] == "ward-a"
    assert main(["coordinator", "token", "ls", *home]) == 0
    assert "1/1 used" in capsys.readouterr().out
    assert main(["coordinator", "status", *home]) == 0
    assert main(["client", "reset-ledger", "--home", str(before / "device")]) == 0
    assert main(["client", "directory", "--home", str(before / "device")]) == 0


def test_a_run_of_2026_11_30_goes_on_and_ends(tmp_path: Path) -> None:
    """If this fails for a key that run.toml has got since: a plan leaves a new key out while it has its default."""
    folder = unpacked("2026-11-30", tmp_path)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    begun = only_run(folder)
    assert [row.round for row in begun.rounds] == [1, 2]
    result = fedpeft.simulate(data=rows, resume=begun.path, store=folder / "home" / "bases")
    view = result.view
    assert [(row.round, row.devices_survived) for row in view.rounds] == [(n, 4) for n in (1, 2, 3, 4, 5)]
    assert view.rounds[:2] == begun.rounds
    assert view.summary is not None
    assert view.summary.outcome == "finished"
    assert verify_run(view.path) == ()
    losses = [row.loss for row in view.rounds]
    assert losses[-1] < losses[2] < losses[0]  # type: ignore[operator]
