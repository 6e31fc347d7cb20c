"""Correlated noise as it is planned, audited and reported."""

import json
import tomllib
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.errors import ConfigInvalid
from fedpeft.ids import RoundId
from fedpeft.privacy import ExampleStatement
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import toy_spec
from fedpeft_server.report.filed_statement import document_of
from fedpeft_server.run.privacy_statements import STATED, detail_of
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run

PLAN = ["privacy", "plan", "--unit", "example", "--epsilon", "3", "--rounds", "60", "--clients", "4"]
PRIVACY = '[privacy]\nunit = "example"\nnoise = "correlated"\nepsilon = 8.0\ndelta = 1e-3\n'


def test_a_plan_says_what_correlation_leaves_of_the_noise(capsys: pytest.CaptureFixture[str]) -> None:
    small = [*PLAN, "--examples", "2500", "--batch", "128"]
    assert main([*small, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["bands"], plain["noise_left"]) == (1, 1.0)
    assert main([*small, "--noise", "correlated", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    bands = found["bands"]
    assert bands >= 4
    assert 0.6 < found["noise_left"] < 0.9
    assert found["epsilon"] <= 3.0
    assert found["sampling_rate"] == pytest.approx(bands * plain["sampling_rate"])
    signals = zip(found["signals"], plain["signals"], strict=True)
    assert all(
        ours["signal_to_noise"] == pytest.approx(theirs["signal_to_noise"] / found["noise_left"])
        for ours, theirs in signals
    )
    assert main([*small, "--noise", "correlated"]) == 0
    out = capsys.readouterr().out
    for fact in (
        f"correlated over {bands} steps it leaves 0.",
        f"turns: {-(-60 // bands)}",
        "every b-th step",
        f"each device keeps {4 * (bands - 1)} bytes",
    ):
        assert fact in out
    assert tomllib.loads(out[out.index("[privacy]") :])["privacy"]["noise"] == "correlated"


def test_a_plan_with_batches_that_large_stays_with_independent_noise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--examples", "2500", "--noise", "correlated"]) == 0
    assert "would leave no less in the model" in capsys.readouterr().out


def test_correlated_noise_is_a_devices_own_and_finds_its_own_multiplier(capsys: pytest.CaptureFixture[str]) -> None:
    by_clients = ["privacy", "plan", "--epsilon", "8", "--rounds", "20", "--clients", "50", "--noise", "correlated"]
    assert main(by_clients) == 2
    assert "a device's own" in capsys.readouterr().err
    for privacy, where in (
        (PRIVACY.replace('"example"', '"client"').replace("1e-3", "0.01"), r"privacy\.noise: .*nobody can take back"),
        ('[privacy]\nnoise = "correlated"\n', r"privacy\.noise: "),
        (PRIVACY + "noise_multiplier = 2.0\n", r"privacy\.noise_multiplier: "),
    ):
        with pytest.raises(ConfigInvalid, match=where):
            parse(toy_run(privacy, clients=50), source="t", simulation=True)


def test_an_audit_attacks_the_matrix_and_a_report_speaks_of_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toy_run(
        f"[rounds]\ncount = 12\n[train]\nbatch_size = 8\nlocal_steps = 1\n{PRIVACY}", clients=50, name="turns"
    )
    config = parse(text, source="t", simulation=True).model_copy(update={"directory": tmp_path})
    said = ExampleStatement(
        epsilon=0.5, delta=1e-3, noise_multiplier=2.0, sampling_rate=0.75, l2_clip_norm=1.0, steps=2
    )
    with RunDirectory.create(config, source=text, adapter=toy_spec({"head": 4}), base_digest="x", command=()) as run:
        run.record(STATED, round_id=RoundId(1), client="north", detail=detail_of(said))
        path = run.path
    assert main(["privacy", "report", str(path)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "turns: 2, composed",
        "every b-th step is a group's turn",
        "over the column norm of its matrix",
        "2 turns)",
    ):
        assert fact in out
    assert "each step takes each example" not in out
    assert any("turns: 2" in str(line) for line in document_of(read_run(path))["promise"])  # type: ignore[union-attr]
    assert main(["privacy", "audit", str(path), "--canaries", "60"]) == 2
    assert "--examples" in capsys.readouterr().err
    assert main(["privacy", "audit", str(path), "--canaries", "60", "--examples", "400", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bands"] > 1
    assert found["steps"] == 12
    assert not found["refuted"]
