"""A statement to file: complete, the same in three forms, and changed by nobody unnoticed."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.adapter import AdapterSpec
from fedpeft.cli import main
from fedpeft.config import parse
from fedpeft.errors import IntegrityFailed
from fedpeft.ids import RoundId
from fedpeft.privacy import Budget, ExampleStatement, PrivacyLedger, Release, opinions
from fedpeft.round.messages import FailureReason
from fedpeft.round.task import RoundOutcome, Traffic
from fedpeft.secagg.coordinator_state import Aborted, Reason
from fedpeft.secagg.primitives import IdentityKey
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import toy_spec
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.report.filed_statement import (
    Filed,
    as_html,
    as_json,
    as_text,
    document_of,
    file_statement,
    read_filed,
)
from fedpeft_server.run.privacy_statements import (
    NOT_COUNTED,
    STATED,
    detail_of,
    engine_lines,
    hear_statements,
    misfit,
    privacy_lines,
    spent,
    stated,
)
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import file_digest, read_run

SPEC: AdapterSpec = toy_spec({"head": 4})
BY_PERSON = """[privacy]
unit = "person"
persons = "do-not-cross"
examples_per_person = 4
epsilon = 8.0
delta = 1e-3
"""
BY_CLIENT = """[aggregate]
weight = "uniform"
[secagg]
min_cohort = 3
[privacy]
unit = "client"
epsilon = 8.0
delta = 0.01
"""
SAID = ExampleStatement(
    epsilon=0.5, delta=1e-3, noise_multiplier=2.0, sampling_rate=1.0, l2_clip_norm=1.0, steps=3, examples_per_person=4
)
FORMS = [as_json, as_text, as_html]


def started(where: Path, privacy: str) -> Path:
    text = toy_run(privacy, clients=50, name="filed")
    config = parse(text, source="t", simulation=True).model_copy(update={"directory": where})
    with RunDirectory.create(config, source=text, adapter=SPEC, base_digest="sha256:0", command=("x",)) as run:
        return run.path


def by_people(where: Path) -> Path:
    path = started(where, BY_PERSON)
    with RunDirectory.open(path) as run:
        for name in ("north", "south"):
            run.record(STATED, round_id=RoundId(1), client=name, detail=detail_of(SAID))
    return path


def coordinator(where: Path) -> CoordinatorHome:
    home = CoordinatorHome(where / "home")
    home.pki.mkdir(parents=True)
    home.settings_file.write_text(Settings(hosts=("h",)).to_json())
    home.identity_seed.write_bytes(bytes(range(32)))
    return home


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> Filed:
    view = read_run(by_people(tmp_path_factory.mktemp("run")))
    return file_statement(document_of(view, signer="coordinator"), IdentityKey(bytes(range(32))))


def test_a_statement_says_what_an_epsilon_needs_and_no_more_of_a_site_than_it_stated(filed: Filed) -> None:
    text = json.dumps(filed.document)
    found = SAID.opinions()
    assert filed.document["epsilon"] == found.charged
    assert [one["epsilon"] for one in filed.document["accountants"]] == [
        found.ours,
        found.prv,
        found.rdp,
        found.charged,
    ]
    for fact in ("one person of one device", "adversary:", "not covered:", "neighbouring runs", "north", "south"):
        assert fact in text
    assert {key for site in filed.document["sites"] for key in site} == {"site", "epsilon", "steps", "people"}


def test_a_run_made_before_there_was_a_choice_of_engine_does_not_claim_opacus(tmp_path: Path) -> None:
    view = read_run(by_people(tmp_path))
    assert "Opacus's hooks" in engine_lines(view)[0]
    old = view.resolved.replace('engine = "auto"\n', "")
    assert old != view.resolved
    made = replace(view, resolved=old, manifest=replace(view.manifest, config_digest=file_digest(old.encode())))
    assert "fedpeft's own hooks" in engine_lines(made)[0]


@pytest.mark.parametrize(("engine", "whose"), [("fedpeft", "fedpeft's own hooks"), ("opacus", "Opacus's hooks")])
def test_a_report_says_whose_hooks_the_run_began_with_whatever_auto_means_today(
    engine: str, whose: str, tmp_path: Path
) -> None:
    path = by_people(tmp_path)
    (path / "terms.json").write_text(json.dumps({"plan": {"privacy": {"engine": engine}}, "first": ""}))
    assert f"by {whose}" in engine_lines(read_run(path))[0]
    assert ("as the version that began the run chose" in engine_lines(read_run(path))[0]) == (engine == "fedpeft")


@pytest.mark.parametrize("text", ["", "{}", '{"plan": {"privacy": {"engine": "steam"}}}', '{"plan": {"privacy": [1]}}'])
def test_a_plan_that_no_run_of_ours_wrote_is_named(text: str, tmp_path: Path) -> None:
    path = by_people(tmp_path)
    (path / "terms.json").write_text(text)
    with pytest.raises(IntegrityFailed, match=r"terms\.json"):
        engine_lines(read_run(path))


def test_a_record_of_before_devices_told_both_figures_is_read_as_ours(tmp_path: Path) -> None:
    path = started(tmp_path, BY_PERSON)
    told = replace(SAID, ours=0.4, prv=0.5)
    with RunDirectory.open(path) as run:
        run.record(STATED, round_id=RoundId(1), client="north", detail=detail_of(SAID))
        run.record(STATED, round_id=RoundId(1), client="south", detail=detail_of(told))
    assert stated(read_run(path)) == {"north": SAID, "south": told}


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": math.inf}, {"prv": math.nan}, {"ours": -1.0}, {"noise_multiplier": 0.0}, {"delta": 1.0},
        {"noise_multiplier": 1e-200}, {"noise_multiplier": 1e200}, {"noise_multiplier": 0.04, "steps": 2**40},
        {"steps": 2**63}, {"steps": 0}, {"sampling_rate": 5e-324}, {"delta": 5e-324}, {"l2_clip_norm": math.nan},
        {"delta": 0.99}, {"l2_clip_norm": 2.0}, {"examples_per_person": 0}, {"examples_per_person": 8},
    ],
)  # fmt: skip
def test_a_statement_that_no_device_of_the_run_can_mean_counts_as_none_and_leaves_the_run_readable(
    change: dict[str, float], tmp_path: Path
) -> None:
    path = started(tmp_path, BY_PERSON)
    outcome = RoundOutcome(
        result=Aborted(reason=Reason.BAD_TERMS, detail="", blamed=frozenset(), restartable=True, rejected={}),
        traffic={
            "north": Traffic(statement=replace(SAID, **change), failure=FailureReason.REFUSED.value),
            "south": Traffic(statement=SAID, failure=FailureReason.REFUSED.value),
        },
        participants={},
        is_final=True,
    )
    with RunDirectory.open(path) as run:
        if all(math.isfinite(value) for value in change.values()):  # an earlier version recorded it
            run.record(STATED, round_id=RoundId(1), client="north", detail=detail_of(replace(SAID, **change)))
        hear_statements(run, RoundId(1), outcome, needed=1)  # so it looks at who has budget left
    view = read_run(path)
    assert stated(view) == {"south": SAID}
    assert [(event.client, event.round) for event in view.events if event.kind == NOT_COUNTED] == [("north", 1)]
    assert any("south" in line and "north" not in line for line in privacy_lines(view))
    assert document_of(view)["sites"][0]["site"] == "south"


@given(
    st.builds(
        ExampleStatement,
        epsilon=st.floats(),
        delta=st.floats() | st.just(1e-3),
        noise_multiplier=st.floats() | st.floats(1.0, 1e3),
        l2_clip_norm=st.floats() | st.just(1.0),
        sampling_rate=st.floats() | st.sampled_from([0.01, 1.0]),
        steps=st.integers(0, 2**64 - 1) | st.integers(1, 1000),
        examples_per_person=st.integers(0, 2**64 - 1) | st.just(4),
        ours=st.none() | st.floats(),
        prv=st.none() | st.floats(),
    )
)
@settings(deadline=None, max_examples=40)
def test_no_statement_that_is_counted_stops_the_coordinator(said: ExampleStatement) -> None:
    text = toy_run(BY_PERSON.replace("8.0", "1e-9"), clients=50, name="filed")  # so small that Opacus is not asked
    config = parse(text, source="t", simulation=True)
    if not misfit(said, config.privacy):
        assert spent(config, {"north": said}, ["north"]) == ("north",)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2**10, 2**34])
@pytest.mark.parametrize(("z", "rate"), [(0.05, 1.0), (0.05, 0.5), (0.05, 1e-10), (1e4, 1.0), (1e4, 1e-10)])
def test_at_the_corners_of_what_may_be_heard_the_accountants_answer(z: float, rate: float, steps: int) -> None:
    said = replace(SAID, noise_multiplier=z, sampling_rate=rate, steps=steps)
    assert said.possible
    began = time.process_time()
    assert said.opinions().charged >= 0
    assert time.process_time() - began < 30


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_back_as_the_same_document(form: Callable[[Filed], bytes], filed: Filed) -> None:
    assert read_filed(form(filed)) == filed


@pytest.mark.parametrize("form", FORMS)
def test_no_changed_byte_passes(form: Callable[[Filed], bytes], filed: Filed) -> None:
    """Each byte of the file in turn is another one: the shown part, the signed part, the key and the signature."""
    payload = form(filed)
    for place in range(0, len(payload), 7):
        changed = bytearray(payload)
        changed[place] = ord("7") if changed[place] != ord("7") else ord("3")
        with pytest.raises(IntegrityFailed):
            read_filed(bytes(changed))


def test_a_document_with_the_signature_of_another_does_not_pass(filed: Filed) -> None:
    smaller = Filed(document={**filed.document, "epsilon": 0.1}, public_key=filed.public_key, signature=filed.signature)
    for form in FORMS:
        with pytest.raises(IntegrityFailed, match="was changed"):
            read_filed(form(smaller))


NONE = b'{"document":1,"public_key":"","signature":""}'


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b"\xff\xfe", b"x" * (5 << 20), NONE], ids=range(6))
def test_what_is_no_statement_is_refused(payload: bytes) -> None:
    with pytest.raises(IntegrityFailed):
        read_filed(payload)


@pytest.mark.parametrize("suffix", [".json", ".html", ".txt"])
def test_a_coordinator_signs_and_anybody_checks(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, target = coordinator(tmp_path), tmp_path / f"statement{suffix}"
    run = by_people(home.path / "runs")
    assert main(["privacy", "report", str(run), "--statement", str(target)]) == 0
    key = home.identity().public.hex()
    assert f"signed by the coordinator, key {key}" in capsys.readouterr().out
    assert main(["privacy", "verify", str(target), "--key", key]) == 0
    assert "unit person" in capsys.readouterr().out
    assert main(["privacy", "verify", str(target), "--key", "00" * 32]) == 6
    target.write_bytes(target.read_bytes().replace(b"person of one device", b"client of all devs...", 1))
    assert main(["privacy", "verify", str(target)]) == 6


def test_a_simulation_has_nobody_to_sign_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "statement.txt"
    assert main(["privacy", "report", str(by_people(tmp_path / "a" / "runs")), "--statement", str(target)]) == 0
    assert "NOT SIGNED" in target.read_text()
    assert main(["privacy", "verify", str(target)]) == 6
    assert "without a signature" in capsys.readouterr().err


def test_a_home_that_is_nobody_s_does_not_sign(tmp_path: Path) -> None:
    run = by_people(tmp_path / "a" / "runs")
    assert main(["privacy", "report", str(run), "--statement", str(tmp_path / "s"), "--home", str(tmp_path)]) == 3
    assert not (tmp_path / "s").exists()


def test_a_run_by_clients_files_what_its_ledger_holds(tmp_path: Path) -> None:
    run = started(tmp_path, BY_CLIENT)
    one = Release(noise_multiplier=2.5, shares=2, share_sigma=1e5, parameters=4, devices=50)
    with PrivacyLedger(
        run / "privacy" / "ledger.jsonl", witness=tmp_path / "w", budget=Budget(epsilon=8.0, delta=0.01)
    ) as ledger:
        ledger.charge("round 1", one)
    document = document_of(read_run(run))
    assert document["epsilon"] == opinions([one], 0.01).charged
    assert document["sites"] == []
    assert any("1 of the releases were lost" in line for line in document["promise"])


@pytest.mark.parametrize(
    ("privacy", "words"), [("", "no differential privacy"), (BY_CLIENT, "nothing has been released")]
)
def test_a_run_that_promises_nothing_files_that(privacy: str, words: str, tmp_path: Path) -> None:
    document = document_of(read_run(started(tmp_path, privacy)))
    assert any(words in line for line in document["promise"])
    assert "epsilon" not in document
