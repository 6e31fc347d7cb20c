"""`fedpeft privacy`: the plan for a budget, and what a run has spent."""

import json
import tomllib
from pathlib import Path

import pytest

from fedpeft.adapter import AdapterSpec
from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.ids import RoundId
from fedpeft.privacy import Budget, ExampleStatement, PrivacyLedger, Release, epsilon, opinions
from fedpeft.testing.trainers import toy_spec
from fedpeft_server.run.privacy_statements import STATED, detail_of, unstated
from fedpeft_server.run.records import ClientRound, RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run

RUN = """
[run]
name = "x"
[base]
model = "pypi:m"
[task]
kind = "classify"
labels = ["a", "b"]
[data]
source = "x.jsonl"
partition = {{by = "iid", clients = 50}}
[adapter]
[[device]]
clients = ["*"]
methods = ["lora"]
{rest}
"""
SPEC: AdapterSpec = toy_spec({"head": 4})


def test_a_plan_gives_noise_signal_and_a_configuration_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "plan", "--epsilon", "8", "--rounds", "20", "--clients", "50"]) == 0
    out = capsys.readouterr().out
    for fact in ("epsilon 7.99", "delta 0.0135", "no amplification", "noise multiplier", "rounds: 20", "not covered"):
        assert fact in out
    assert "head only" in out
    made = out[out.index("[privacy]") :]
    config = parse(
        RUN.format(rest=made).replace("[adapter]", "[adapter]\nlora = {rank = 4}"), source="t", simulation=True
    )
    assert config.privacy.unit == "client"
    assert tomllib.loads(made)["secagg"]["min_cohort"] == 40
    assert tomllib.loads(made)["privacy"]["l2_clip_norm"] == 1.0
    assert "one client in 74 outright" in out


@pytest.mark.parametrize("unit", ["", "--unit example --examples 2000", "--unit person --people 800"])
def test_a_plan_as_json_holds_what_the_text_says(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["privacy", "plan", "--epsilon", "8", "--rounds", "20", "--clients", "50", *unit.split()]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["unit"] == (unit.split()[1] if unit else "client")
    assert text.startswith(f"epsilon {said['epsilon']:.4g} at delta {said['delta']:g}\n")
    assert f"noise multiplier {said['noise_multiplier']:g}" in text
    assert all(f"{line}\n" in text for line in [*said["promise"], *said["advice"]])
    assert text.endswith(f"\n{said['config']}\n")
    tomllib.loads(said["config"])
    shown = [" ".join(line.split()) for line in text.splitlines()]
    for row in said["signals"]:
        figures = f"{row['parameters']:,} {row['signal_to_noise']:.3f} {row['verdict']}"
        assert f"{row['name']} d = {figures}" in shown
    assert f"recommended: {said['recommended'] or 'none of these'}" in text


@pytest.mark.parametrize(("clients", "clip"), [("3", "fixed"), ("2000", "adaptive")])
def test_a_plan_lets_the_clip_norm_follow_the_clients_where_the_noise_allows(
    clients: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", "--epsilon", "1", "--rounds", "20", "--clients", clients]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out[out.index("[privacy]") :])["privacy"]["clip"] == clip
    assert ("only follow noise" in out) == (clip == "fixed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--delta", "0.1"], "at most 1 / 50 clients"),
        (["--min-cohort", "51"], "at most the 50 clients"),
        (["--min-cohort", "5", "--colluders", "5"], "fewer than the 5"),
        (["--bits", "16", "--parameters", "74498"], "secagg.bits = 32"),
    ],
)
def test_a_plan_that_keeps_no_promise_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", "--epsilon", "8", "--rounds", "20", "--clients", "50", *options]) == 3
    assert words in capsys.readouterr().err


def test_enough_clients_get_a_recommendation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "plan", "--epsilon", "8", "--rounds", "5", "--clients", "2000"]) == 0
    assert "recommended: lora r8" in capsys.readouterr().out


def test_few_clients_are_told_that_it_drowns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "plan", "--epsilon", "0.5", "--rounds", "50", "--clients", "5"]) == 0
    assert "hides all of them" in capsys.readouterr().out


def test_a_plan_by_examples_names_a_method_and_gives_a_configuration_that_loads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--unit", "example", "--epsilon", "3", "--rounds", "120", "--clients", "6", "--examples", "2000"]
    assert main(["privacy", "plan", *options]) == 0
    out = capsys.readouterr().out
    for fact in (
        "one training example of one device",
        "probability 0.707",
        "steps: 120",
        "metrics: none",
        "not covered",
    ):
        assert fact in out
    assert "recommended: head only" in out
    rows = [line.split() for line in out.splitlines() if " d = " in line]
    ratios = [float(row[-2]) for row in rows]
    assert ratios == sorted(ratios, reverse=True)
    made = out[out.index("[privacy]") :]
    config = parse(
        RUN.format(rest=made).replace("[adapter]", "[adapter]\nlora = {rank = 4}"), source="t", simulation=True
    )
    assert (config.privacy.unit, config.train.batch_size, config.aggregate.server_optimizer) == (
        "example",
        1024,
        "momentum",
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "--examples"),
        (["--examples", "100", "--delta", "0.1"], 3, "at most 1 / 181 examples"),
    ],
)
def test_a_plan_by_examples_that_cannot_be_made_is_refused(
    options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ["privacy", "plan", "--unit", "example", "--epsilon", "3", "--rounds", "9", "--clients", "6"]
    assert main([*begin, *options]) == code
    assert words in capsys.readouterr().err


def test_few_examples_are_told_that_all_drown(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--unit", "example", "--epsilon", "0.2", "--rounds", "200", "--clients", "3", "--examples", "60"]
    assert main(["privacy", "plan", *options]) == 0
    assert "hides all of them" in capsys.readouterr().out


def started(where: Path, rest: str) -> Path:
    text = RUN.format(rest=rest).replace("[adapter]", "[adapter]\nlora = {rank = 4}")
    config = parse(text, source="t", simulation=True).model_copy(update={"directory": where})
    with RunDirectory.create(config, source=text, adapter=SPEC, base_digest="sha256:0", command=("x",)) as run:
        return run.path


PRIVATE = """
[aggregate]
weight = "uniform"
[secagg]
min_cohort = 3
[privacy]
unit = "client"
epsilon = 8.0
delta = 0.01
"""


def test_a_report_says_what_was_spent_with_everything_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path, PRIVATE)
    one = Release(noise_multiplier=2.5, shares=2, share_sigma=1e5, parameters=4, devices=50)
    with PrivacyLedger(
        run / "privacy" / "ledger.jsonl", witness=tmp_path / "w", budget=Budget(epsilon=8.0, delta=0.01)
    ) as ledger:
        ledger.charge("round 1", one)
        ledger.charge("round 2", one)
    assert main(["privacy", "report", str(run)]) == 0
    out = capsys.readouterr().out
    said = opinions([one, one], 0.01)
    assert said.ours == epsilon([(one, 2)], 0.01)
    assert f"epsilon {said.charged:.4g} at delta 0.01" in out
    assert f"{said.ours:.4g} by ours" in out
    assert f"{said.prv:.4g} by Opacus's PRV" in out
    assert "noise multiplier 2.5" in out
    assert "rounds: 2" in out
    assert "2 of the releases were lost" in out


EXAMPLES = """
[privacy]
unit = "example"
epsilon = 8.0
delta = 0.001
"""


def test_a_report_names_the_devices_that_were_summed_and_stated_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One device of a private run may have been talked out of its noise: the others' epsilons do not cover it."""
    path = started(tmp_path, EXAMPLES)
    said = ExampleStatement(
        epsilon=2.0, delta=0.001, noise_multiplier=1.1, sampling_rate=0.1, l2_clip_norm=1.0, steps=4
    )
    with RunDirectory.open(path) as run:
        for name in ("a", "b"):
            run.record(STATED, round_id=RoundId(1), client=name, detail=detail_of(said))
        parts = {"methods": "lora", "bytes_up": 0, "bytes_down": 0, "seconds": 0.0}
        clients = [ClientRound(client=name, state="summed", **parts) for name in ("a", "b", "d")]  # type: ignore[arg-type]
        clients.append(ClientRound(client="c", state="dropped", **parts))  # type: ignore[arg-type]
        row = RoundMetrics(
            round=1, loss=None, accuracy=None, evaluators=0, devices_invited=4, devices_ready=3, devices_survived=3,
            bytes_up=0, bytes_down=0, seconds=0.0, clients=tuple(clients),
        )  # fmt: skip
        run.commit(RoundId(1), b"state", {}, row)
    assert unstated(read_run(path)) == {"d": (1,)}
    assert main(["privacy", "report", str(path)]) == 0
    assert "NOT COVERED: devices that were summed and stated nothing: d in rounds 1" in capsys.readouterr().out
    with RunDirectory.open(path) as run:
        run.record(STATED, round_id=RoundId(1), client="d", detail=detail_of(said))
    assert main(["privacy", "report", str(path)]) == 0
    assert "NOT COVERED" not in capsys.readouterr().out


def test_a_report_before_any_release_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "report", str(started(tmp_path, PRIVATE))]) == 0
    assert "nothing has been released" in capsys.readouterr().out


def test_a_run_without_privacy_promises_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "report", str(started(tmp_path, ""))]) == 0
    assert "no differential privacy" in capsys.readouterr().out


def test_a_changed_ledger_is_not_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = started(tmp_path, PRIVATE)
    (run / "privacy").mkdir()
    (run / "privacy" / "ledger.jsonl").write_bytes(b'{"sequence":1}\n')
    assert main(["privacy", "report", str(run)]) == 6
    assert "continue the chain" in capsys.readouterr().err


BY_EXAMPLE = """
[privacy]
unit = "example"
epsilon = 2.0
delta = 1e-5
[train]
batch_size = 32
local_steps = 1
[rounds]
count = 4
"""


def config_file(where: Path, rest: str) -> str:
    file = where / "run.toml"
    file.write_text(RUN.format(rest=rest).replace("[adapter]", "[adapter]\nlora = {rank = 4}"))
    return str(file)


def test_an_audit_of_a_configuration_says_claim_bound_and_saturation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "audit", config_file(tmp_path, PRIVATE), "--canaries", "60"]) == 0
    out = capsys.readouterr().out
    for fact in (
        "60 canary clients",
        "claimed",
        "lower bound",
        "95 % confidence",
        "saturation",
        "no bound can be larger",
    ):
        assert fact in out
    assert "could not have refuted it" in out or "not refuted, which is no proof" in out
    assert main(["privacy", "audit", config_file(tmp_path, PRIVATE), "--canaries", "60", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert f"claimed       epsilon {said['claimed']:.3f} at delta {said['delta']:g}" in out
    assert f"saturation    epsilon {said['saturation']:.3f}" in out
    assert said["could_have_been_refuted"] == (said["saturation"] >= said["claimed"])
    assert said["lower_bound"] <= said["saturation"]
    assert (said["unit"], said["canaries"], said["refuted"]) == ("client", 60, False)


def test_an_audit_of_a_run_attacks_the_noise_that_its_ledger_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(tmp_path, PRIVATE)
    spent = Release(noise_multiplier=2.5, shares=2, share_sigma=1e5, parameters=4, devices=50)
    budget = Budget(epsilon=8.0, delta=0.01)
    with PrivacyLedger(run / "privacy" / "ledger.jsonl", witness=tmp_path / "w", budget=budget) as ledger:
        ledger.charge("round 1", spent)
    assert main(["privacy", "audit", str(run), "--canaries", "60"]) == 0
    assert "over 1 sums, noise multiplier 2.5" in capsys.readouterr().out


def test_an_audit_by_examples_needs_to_know_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_file(tmp_path, BY_EXAMPLE)
    assert main(["privacy", "audit", config, "--canaries", "60"]) == 2
    assert "--examples" in capsys.readouterr().err
    assert main(["privacy", "audit", config, "--canaries", "60", "--examples", "500"]) == 0
    assert "60 canary examples over 4 steps" in capsys.readouterr().out


def test_an_audit_that_refutes_the_claim_ends_with_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded bug: every device draws no noise."""
    from importlib import import_module

    import numpy as np

    mechanism = import_module("fedpeft.privacy.mechanism")
    monkeypatch.setattr(mechanism, "discrete_gaussian", lambda sigma, size, entropy: np.zeros(size, np.int32))
    config = config_file(tmp_path, PRIVATE.replace("epsilon = 8.0", "epsilon = 1.0"))
    assert main(["privacy", "audit", config, "--canaries", "300", "--json"]) == 1
    told = capsys.readouterr()
    assert "does not keep its promise" in told.err
    assert json.loads(told.out)["refuted"]


def test_nothing_is_audited_where_nothing_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "audit", config_file(tmp_path, "")]) == 3
    assert "nothing is claimed" in capsys.readouterr().err


def test_a_plan_and_an_audit_by_people_are_in_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ["privacy", "plan", "--unit", "person", "--epsilon", "3", "--rounds", "9", "--clients", "6"]
    assert main(begin) == 2
    assert "--people" in capsys.readouterr().err
    assert main([*begin, "--people", "800", "--per-person", "4"]) == 0
    out = capsys.readouterr().out
    for fact in (
        "one person of one device, with all of their examples",
        "mean gradient of at most 4 of a person's examples",
        "6 devices of 800 people",
        'persons = "do-not-cross"\nexamples_per_person = 4\n',
    ):
        assert fact in out
    by_people = BY_EXAMPLE.replace('unit = "example"', 'unit = "person"\npersons = "do-not-cross"')
    config = config_file(tmp_path, by_people)
    assert main(["privacy", "audit", config, "--canaries", "60", "--examples", "500"]) == 0
    assert "60 canary people over 4 steps" in capsys.readouterr().out
