"""`fedpeft config`: valid files pass, others end with 3 and every problem, and nothing is started."""

import json
import tomllib
from pathlib import Path

import pytest

from fedpeft.cli import main


@pytest.fixture
def valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The template as a file."""
    assert main(["config", "template"]) == 0
    path = tmp_path / "run.toml"
    path.write_text(capsys.readouterr().out)
    return path


def test_a_valid_file_passes(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", str(valid)]) == 0
    assert "valid, run 'my-run', sha256:" in capsys.readouterr().out


def test_every_problem_is_on_stderr_and_the_exit_code_is_three(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = ["--set", "rounds.cuont=3", "--set", "rounds.min_devices=1", "--set", "nonsense"]
    assert main(["config", "validate", str(valid), *broken]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "found 3 problems" in printed.err
    assert "Did you mean `count`?" in printed.err
    assert "Traceback" not in printed.err


def test_a_deployment_is_checked_more_strictly(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["config", "validate", str(valid), "--set", "secagg.mode=off"]
    assert main(arguments) == 0
    assert main([*arguments, "--deployment"]) == 3
    assert "outside a simulation" in capsys.readouterr().err


def test_an_absent_file_is_told_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", str(tmp_path / "absent.toml")]) == 3
    assert "absent.toml: expected a readable TOML file" in capsys.readouterr().err


def test_show_prints_what_would_be_run(valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(valid), "--set", "rounds.count=5"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["rounds"]["count"] == 5
    assert shown["train"]["batch_size"] == 32


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert "device" in json.loads(capsys.readouterr().out)["properties"]


def test_every_bundled_scenario_is_valid() -> None:
    scenarios = sorted(Path(__file__).parents[2].glob("simulations/scenarios/*.toml"))
    assert scenarios
    for path in scenarios:
        assert main(["config", "validate", str(path)]) == 0
