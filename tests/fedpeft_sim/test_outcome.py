"""The end of a run for a person, from its directory alone."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedpeft.adapter import AdapterSpec
from fedpeft.config import parse
from fedpeft.ids import RoundId
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.trainers import toy_spec
from fedpeft_server.run.records import Comparison, RoundMetrics, Summary
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_sim.outcome import show_outcome

SOURCE = """
[run]
name = "small"
[base]
model = "pypi:some-model"
[task]
kind = "classify"
[data]
source = "x.jsonl"
partition = {by = "iid", clients = 3}
[adapter]
lora = {rank = 4}
[[device]]
clients = ["*"]
methods = ["lora"]
"""
SPEC: AdapterSpec = toy_spec({"head": 2})


def row(number: int) -> RoundMetrics:
    return RoundMetrics(
        round=number, loss=None, accuracy=None, evaluators=0, devices_invited=3, devices_ready=3, devices_survived=3,
        bytes_up=1, bytes_down=1, seconds=1.0,
    )  # fmt: skip


def ended(parent: Path, **summary: object) -> Path:
    config = parse(SOURCE, source="run.toml", simulation=True).model_copy(update={"directory": parent})
    with RunDirectory.create(
        config, source=SOURCE, adapter=SPEC, base_digest="sha256:b", command=("fedpeft",), clock=FakeClock()
    ) as run:
        for number in range(1, int(str(summary.get("rounds", 0))) + 1):
            run.begin_attempt(RoundId(number))
            run.commit(RoundId(number), b"state", {}, row(number))
        if summary:
            run.write_summary(Summary(**summary))  # type: ignore[arg-type]
        return run.path


def said(run: Path, *, width: int = 200) -> str:
    out = io.StringIO()
    show_outcome(Console(file=out, width=width, color_system=None), run)
    return out.getvalue()


FINISHED = {"outcome": "finished", "rounds": 8, "seconds": 90.0, "bytes_up": 2_000_000, "bytes_down": 3_000_000}


def test_the_end_names_the_bytes_the_adapter_and_commands_to_go_on_with(tmp_path: Path) -> None:
    run = ended(tmp_path, **FINISHED, bytes_full_parameters=10_000_000_000)
    lines = said(run).splitlines()
    assert lines[0] == (
        "5.0 MB moved in 8 rounds (90 s); a federation of every parameter would have moved 10.00 GB, 2000 times as much"
    )
    assert f"{run / 'adapters' / 'final'}" in lines[1]
    assert len([line for line in lines if line.startswith("  ")]) == 4


def test_without_baselines_the_table_has_no_empty_columns_and_the_command_for_them_is_told(tmp_path: Path) -> None:
    row = Comparison(client="all", examples=40, alone=None, federated=0.5, centralised=None)
    run = ended(tmp_path, **FINISHED, comparison=(row,))
    text = said(run)
    assert "50.0 %" in text
    assert "alone:" not in text
    assert "centralised" not in text
    assert f"fedpeft simulate --resume {run} --baselines" in text


def test_with_baselines_nothing_asks_for_them(tmp_path: Path) -> None:
    row = Comparison(client="all", examples=40, alone=None, federated=0.5, centralised=0.6)
    assert "--baselines" not in said(ended(tmp_path, **FINISHED, comparison=(row,)))


@pytest.mark.parametrize("name", ["virgin-america", "Acme [eu]", "[/b]"])
def test_the_comparison_shows_every_client_by_its_name(tmp_path: Path, name: str) -> None:
    rows = (
        Comparison(client=name, examples=40, alone=0.765, federated=0.8275, centralised=0.837),
        Comparison(client="all", examples=40, alone=None, federated=0.5, centralised=None),
    )
    text = said(ended(tmp_path, **FINISHED, comparison=rows))
    (row,) = [line for line in text.splitlines() if name in line]
    assert [share in row for share in ("40", "76.5 %", "82.8 %", "83.7 %")] == [True] * 4
    assert "50.0 %" in text
    assert "None" not in text


def test_the_table_asks_a_client_alone_both_questions(tmp_path: Path) -> None:
    rows = (
        Comparison(client="north", examples=40, alone=0.99, everywhere=0.125, federated=0.9, centralised=0.95),
        Comparison(client="all", examples=40, alone=0.125, everywhere=0.125, federated=0.85, centralised=0.9),
    )
    text = said(ended(tmp_path, **FINISHED, comparison=rows))
    (row,) = [line for line in text.splitlines() if "north" in line and "99.0 %" in line and "12.5 %" in line]
    assert "90.0 %" in row
    assert "north does better alone on its own examples (99.0%, not 90.0%)" in text
    assert "on everybody's that model has 12.5% beside 85.0%" in text


def test_the_demos_table_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    rows = (
        Comparison(client="virgin-america", examples=400, alone=0.99, everywhere=0.9, federated=0.9, centralised=0.9),
        Comparison(client="all", examples=2400, alone=0.9, everywhere=0.9, federated=0.85, centralised=0.9),
    )
    text = said(ended(tmp_path, **FINISHED, comparison=rows), width=80)
    assert "virgin-america" in text
    assert "centralised" in text


def test_a_language_models_table_has_perplexities_of_tokens(tmp_path: Path) -> None:
    rows = (
        Comparison(client="north", examples=4000, alone=31.25, everywhere=40.5, federated=25.5, centralised=24.25),
        Comparison(client="all", examples=4000, alone=40.5, everywhere=40.5, federated=26.0, centralised=25.0),
    )
    text = said(ended(tmp_path, **FINISHED, metric="perplexity", comparison=rows))
    assert "Perplexity on held-out tokens, lower is better" in text
    assert "tokens ┃" in text
    assert "examples ┃" not in text
    assert "%" not in text.split("MB moved", maxsplit=1)[0]
    assert "31.25" in text
    assert "better alone" not in text


def test_a_run_without_a_summary_is_said_not_to_have_ended(tmp_path: Path) -> None:
    run = ended(tmp_path)
    assert "did not end" in said(run)
