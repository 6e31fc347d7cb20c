"""What a run asks of a device, its owner's answers, and what is said to have left."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest

from fedpeft.cli import main
from fedpeft.config.model import Train
from fedpeft.errors import ApprovalPending, IntegrityFailed, PolicyRefused, ResourceMissing, RosterMissing
from fedpeft.kept_file import KeptFile
from fedpeft.privacy import ExampleStatement
from fedpeft.round.failures import REFUSED, refusal_of
from fedpeft.round.messages import Failure, FailureReason, Ready
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.signed_request import SignedRequest, read_signed
from fedpeft.round.transport import Stage
from fedpeft.secagg import RoundOffer
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol, exact_terms, fit_request, toy_past, toy_task
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode
from fedpeft_client import site_runs
from fedpeft_client.home import DeviceHome, Enrolment
from fedpeft_client.process.run_watch import RunWatch
from fedpeft_client.run_question import _PROTECTED, question_of
from fedpeft_client.site import Site, SiteData, SitePolicy
from fedpeft_client.site_runs import UNANSWERED, SentRecord, SiteRuns
from fedpeft_client.training.device_stores import FileStore

SPEC = toy_spec({"head": 4, "bitfit": 5})
PLAN = toy_plan(SPEC, secagg=exact_terms(4))
CHANGED = PLAN.model_copy(update={"train": Train(local_steps=7)})
AT = "2026-11-30T12:00:00+00:00"
SOURCE = "/data/notes.jsonl"


@pytest.fixture(scope="module")
def signed() -> SignedRequest:
    """What a coordinator has signed for the first round of PLAN."""
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {}) for i in range(4)})
    return read_signed(fleet.coordinator.public, fit_request(fleet, PLAN, toy_state(SPEC)))


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    made = DeviceHome(tmp_path)
    made.write_enrolment(
        Enrolment(
            device="ward-a", organisation="clinic", host="fed.example", fleet_port=1, service_port=2,
            coordinator_key="", ca_fingerprint="",
        )
    )  # fmt: skip
    return made


@pytest.fixture
def runs(home: DeviceHome) -> SiteRuns:
    return SiteRuns(home.runs, FakeClock())


def asking(signed: SignedRequest, plan: LearningPlan = PLAN, **changes: object):
    question = question_of(replace(signed, plan=plan), source=SOURCE, at=AT, needs_yes=True)
    return replace(question, **changes)


def approve(runs: SiteRuns, plan: LearningPlan = PLAN) -> None:
    asked = runs.record(plan.run_id).question
    assert asked is not None
    runs.decide(plan.run_id, "approved", plan=asked.plan_sha256, by="me")


def watch(runs: SiteRuns, rule: str = "ask") -> RunWatch:
    site = Site(data=SiteData(source=SOURCE), policy=SitePolicy(approve=rule))  # type: ignore[arg-type]
    return RunWatch(runs, site, FakeClock())


def test_a_run_waits_until_its_owner_says_yes_and_is_heard_of_as_later(runs: SiteRuns, signed: SignedRequest) -> None:
    with pytest.raises(ApprovalPending) as waits:
        watch(runs).expect_approved(signed)
    assert refusal_of(waits.value).reason is FailureReason.LATER
    assert [record.waits for record in runs.records()] == [True]
    approve(runs)
    watch(runs).expect_approved(signed)
    assert [record.waits for record in runs.records()] == [False]


def test_a_run_that_the_rules_alone_decide_on_waits_for_nobody_until_the_rule_changes(
    runs: SiteRuns, signed: SignedRequest
):
    watch(runs, "rules").expect_approved(signed)
    assert [record.waits for record in runs.records()] == [False]
    with pytest.raises(ApprovalPending):
        watch(runs, "ask").expect_approved(signed)
    assert [record.waits for record in runs.records()] == [True]


def test_a_yes_holds_for_one_plan_and_a_changed_one_asks_again(runs: SiteRuns, signed: SignedRequest) -> None:
    runs.ask(asking(signed))
    approve(runs)
    runs.expect_approved(PLAN, ask=True)
    with pytest.raises(ApprovalPending):
        runs.expect_approved(CHANGED, ask=True)
    assert runs.ask(asking(signed, CHANGED))
    assert runs.record(PLAN.run_id).waits
    approve(runs, CHANGED)
    runs.expect_approved(CHANGED, ask=True)
    with pytest.raises(ApprovalPending):
        runs.expect_approved(PLAN, ask=True)


@pytest.mark.parametrize(("unit", "whose"), [("example", "each example:"), ("person", "each person here, with all of")])
def test_an_owner_is_told_whom_the_epsilon_protects(signed: SignedRequest, unit: str, whose: str) -> None:
    terms = ExampleTerms(epsilon=3.0, delta=1e-5, l2_clip_norm=1.0, noise_multiplier=None, steps=8, unit=unit)
    question = asking(signed, PLAN.model_copy(update={"privacy": terms}))
    assert question.privacy.startswith(whose)
    assert "epsilon 3 at delta 1e-05" in question.privacy


def test_every_unit_that_a_plan_can_have_has_words_for_its_owner() -> None:
    assert set(_PROTECTED) == set(get_args(ExampleTerms.model_fields["unit"].annotation))


def test_a_no_holds_for_the_run_whatever_its_plan(runs: SiteRuns, signed: SignedRequest) -> None:
    runs.ask(asking(signed))
    runs.decide(PLAN.run_id, "refused", plan="", by="me")
    for plan in (PLAN, CHANGED):
        for ask in (False, True):
            with pytest.raises(PolicyRefused) as refused:
                runs.expect_approved(plan, ask=ask)
            assert refusal_of(refused.value) == REFUSED
    with pytest.raises(PolicyRefused, match="for good"):
        approve(runs)
    runs.ask(asking(signed, CHANGED))
    assert not runs.record(PLAN.run_id).waits


def test_a_plan_that_changed_since_it_was_shown_is_not_approved_by_the_old_yes(
    runs: SiteRuns, signed: SignedRequest
) -> None:
    runs.ask(asking(signed))
    asked = runs.record(PLAN.run_id).question
    assert asked is not None
    runs.ask(asking(signed, CHANGED))
    for digest in (asked.plan_sha256, ""):
        with pytest.raises(ResourceMissing):
            runs.decide(PLAN.run_id, "approved", plan=digest, by="me")
    assert runs.record(PLAN.run_id).decision is None


def test_a_flood_of_questions_removes_no_answer(runs: SiteRuns, signed: SignedRequest) -> None:
    """The coordinator chooses ids: with many it must not make a device forget a no."""
    runs.ask(asking(signed, run_id="no"))
    runs.decide("no", "refused", plan="", by="me")
    runs.add(SentRecord(run_id="counted", bytes_up=1))
    for number in range(UNANSWERED + 10):
        runs.ask(asking(signed, run_id=f"flood-{number}", at=f"{AT}{number:03}"))
    assert runs.is_refused("no")
    records = {record.run_id: record for record in runs.records()}
    assert sum(record.waits for record in records.values()) == UNANSWERED
    assert records["counted"].left is not None
    assert "flood-0" not in records
    assert f"flood-{UNANSWERED + 9}" in records


@pytest.mark.parametrize("run_id", ["../../escape", "/etc/run", "a\x1b[2Jb", "", "x" * 5000])
def test_an_id_that_is_no_file_name_stays_in_the_folder(
    run_id: str, runs: SiteRuns, signed: SignedRequest, home: DeviceHome
):
    before = set(home.path.rglob("*"))
    runs.ask(asking(signed, run_id=run_id))
    assert all(path.is_relative_to(home.runs) for path in set(home.path.rglob("*")) - before)
    question = runs.record(run_id).question
    assert question is not None
    assert question.run_id == run_id


def test_a_damaged_answer_is_no_answer_but_an_error(runs: SiteRuns, signed: SignedRequest, home: DeviceHome) -> None:
    runs.ask(asking(signed))
    runs.decide(PLAN.run_id, "refused", plan="", by="me")
    (path,) = home.runs.glob("*/decision.json")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(IntegrityFailed, match="decision"):
        runs.expect_approved(PLAN, ask=False)


def test_a_run_is_asked_about_with_its_roster_and_goes_on_without(runs: SiteRuns, signed: SignedRequest) -> None:
    """The question says how many organisations there are: where that cannot be seen, nothing is asked."""
    bare = replace(signed, terms=replace(signed.terms, participants=()))
    with pytest.raises(RosterMissing) as missing:
        watch(runs).expect_approved(bare)
    assert refusal_of(missing.value).reason is FailureReason.MISSING_ROSTER
    assert runs.record(PLAN.run_id).question is None
    with pytest.raises(ApprovalPending):
        watch(runs).expect_approved(signed)
    approve(runs)
    watch(runs).expect_approved(bare)
    with pytest.raises(RosterMissing):
        watch(runs).expect_approved(replace(bare, plan=CHANGED))
    with pytest.raises(RosterMissing):
        watch(runs, "rules").expect_approved(bare)


def test_a_request_without_its_roster_is_read_without_participants() -> None:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {}) for i in range(4)})
    request = fit_request(fleet, PLAN, toy_state(SPEC))
    whole = read_signed(fleet.coordinator.public, request)
    bare = encode(replace(decode(request.offer, RoundOffer), roster=b""))
    read = read_signed(fleet.coordinator.public, replace(request, offer=bare))
    assert len(whole.terms.participants) == 4
    assert read == replace(whole, terms=replace(whole.terms, participants=()))


def test_what_leaves_is_counted_once_a_round_and_refusals_are_not(runs: SiteRuns, signed: SignedRequest) -> None:
    seen = watch(runs, "rules")
    seen.expect_approved(signed)
    seen.leaving(Stage.FIT, b"asked", encode(REFUSED))
    assert runs.record(PLAN.run_id).left is None
    statement = ExampleStatement(
        epsilon=1.5, delta=1e-5, noise_multiplier=1.0, sampling_rate=0.1, l2_clip_norm=1.0, steps=4
    )
    ready = encode(Ready(advertise=b"keys", privacy=statement))
    seen.leaving(Stage.FIT, b"asked", ready)
    for _ in range(2):  # a repeated request: its bytes leave twice, its round is one
        seen.leaving(Stage.MASK, b"request", b"masked")
    left = runs.record(PLAN.run_id).left
    assert left is not None
    assert (left.rounds, left.last_round) == (1, 1)
    assert left.bytes_up == len(ready) + 2 * len(b"masked")
    assert left.bytes_down == len(b"asked") + 2 * len(b"request")
    assert (left.epsilon, left.delta) == (1.5, 1e-5)


def test_a_no_within_a_round_keeps_its_input_here(runs: SiteRuns, signed: SignedRequest) -> None:
    seen = watch(runs, "rules")
    seen.expect_approved(signed)
    assert not seen.is_off(Stage.MASK)
    runs.decide(PLAN.run_id, "refused", plan="", by="me")
    assert seen.is_off(Stage.MASK)
    assert not seen.is_off(Stage.REVEAL), "its input has left: the others' sum needs its answer"


@pytest.mark.parametrize("becomes", ["missing", "damaged", "unreadable"])
def test_where_the_run_at_work_is_not_known_no_input_leaves(
    runs: SiteRuns, signed: SignedRequest, home: DeviceHome, becomes: str
) -> None:
    """It may be one that its owner refused."""
    watch(runs, "rules").expect_approved(signed)
    runs.decide(PLAN.run_id, "refused", plan="", by="me")
    opened = home.runs / "open"
    content = opened.read_bytes()
    opened.unlink()
    if becomes == "damaged":
        opened.write_bytes(content.replace(PLAN.run_id.encode(), b"!" * len(PLAN.run_id)))
    elif becomes == "unreadable":
        opened.mkdir()
    seen = watch(SiteRuns(home.runs, FakeClock()), "rules")
    assert seen.is_off(Stage.MASK)
    assert not seen.is_off(Stage.REVEAL)


def test_what_had_left_before_an_update_goes_on_to_count(
    runs: SiteRuns, signed: SignedRequest, home: DeviceHome
) -> None:
    """It was in ``left.json``, and its run is not forgotten for newer questions."""
    before = SentRecord(
        run_id="old", first=AT, last=AT, rounds=7, last_round=7, bytes_up=99, bytes_down=9, epsilon=3.2, delta=1e-5
    )
    runs.ask(asking(signed, run_id="old", at=""))
    (folder,) = (path.parent for path in home.runs.glob("*/question.json"))
    (folder / "left.json").write_text(json.dumps(asdict(before), indent=2) + "\n")
    assert runs.record("old").left == before
    assert [record.left for record in runs.records()] == [before]
    runs.add(SentRecord(run_id="old", last_round=8, bytes_up=1, bytes_down=1))
    left = runs.record("old").left
    assert left is not None
    assert (left.first, left.rounds, left.bytes_up, left.epsilon) == (AT, 8, 100, 3.2)
    (folder / "left").write_text("{")
    assert [record.left for record in runs.records()] == [None], "not the smaller counts of before"
    with pytest.raises(IntegrityFailed):
        runs.record("old")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", json.dumps({"run_id": "other"}), json.dumps({"run_id": "old", "rounds": 10**30})],
    ids=["nothing", "no object", "a part", "of another run", "no count"],
)
def test_a_damaged_account_of_before_an_update_is_an_error(
    runs: SiteRuns, signed: SignedRequest, home: DeviceHome, text: str
) -> None:
    runs.ask(asking(signed, run_id="old"))
    (folder,) = (path.parent for path in home.runs.glob("*/question.json"))
    (folder / "left.json").write_text(text)
    with pytest.raises(IntegrityFailed):
        runs.add(SentRecord(run_id="old", bytes_up=1))
    assert not (folder / "left").exists()


@pytest.mark.parametrize("part", ["decision.json", "left", "left.json"])
def test_a_damaged_answer_or_account_is_not_removed_to_make_room(
    runs: SiteRuns, signed: SignedRequest, home: DeviceHome, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_runs, "UNANSWERED", 2)
    runs.ask(asking(signed, run_id="no", at=""))
    (folder,) = (path.parent for path in home.runs.glob("*/question.json"))
    (folder / part).write_text("{")
    for number in range(4):
        runs.ask(asking(signed, run_id=f"flood-{number}"))
    assert (folder / part).exists()
    assert len(list(home.runs.glob("*/question.json"))) == 3


def test_a_no_that_comes_while_it_is_looked_for_is_no_damage(runs: SiteRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    read = KeptFile.read

    def refused_meanwhile(file: KeptFile) -> bytes | None:
        found = read(file)
        if found is None and file.path.name == "decision.json":
            monkeypatch.undo()
            runs.decide("run", "refused", plan="", by="me")
        return found

    monkeypatch.setattr(KeptFile, "read", refused_meanwhile)
    assert not runs.is_refused("run")
    assert runs.is_refused("run")


def test_the_owner_sees_answers_and_reads_back_by_command(
    runs: SiteRuns, signed: SignedRequest, home: DeviceHome, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        code = main(["client", "runs", *arguments, "--home", str(home.path)])
        return code, capsys.readouterr().out

    assert said("pending") == (0, "no run waits for an answer\n")
    runs.ask(asking(signed))
    code, shown = said("pending")
    assert code == 0
    for part in (PLAN.run_id, PLAN.base, SOURCE, "100 rounds of 4 steps", "no noise", "3 organisations at least"):
        assert part in shown, part
    (waiting,) = json.loads(said("pending", "--json")[1])
    assert LearningPlan.from_json(waiting["learning"]) == PLAN
    assert said("approve", "another", "--plan", waiting["plan_sha256"])[0] == 8
    assert said("approve", "toy", "--plan", "f" * 8)[0] == 8
    assert said("approve", "toy", "--plan", waiting["plan_sha256"][:4])[0] == 2
    assert said("approve", "toy", "--plan", waiting["plan_sha256"][:12])[0] == 0
    runs.expect_approved(PLAN, ask=True)
    assert said("refuse", "toy", "--yes")[0] == 0
    assert said("approve", "toy", "--plan", waiting["plan_sha256"])[0] == 7
    (listed,) = json.loads(said("ls", "--json")[1])
    assert (listed["run"], listed["waits"], listed["decision"]["answer"]) == (PLAN.run_id, False, "refused")
    assert "refused" in said("ls")[1]


def test_the_owner_sees_that_a_coordinator_signed_two_histories(
    runs: SiteRuns, signed: SignedRequest, home: DeviceHome, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, state = enrol({f"d{i}": GivenTrainer(SPEC, {}) for i in range(4)}), toy_state(SPEC)
    store = FileStore(home.state)
    node = next(iter(fleet.devices))
    pasts = (toy_past(PLAN, state, rounds=3), toy_past(PLAN, state, rounds=3, left=b"\1" * 32))
    for attempt, past in enumerate(pasts, 1):
        request = fit_request(fleet, PLAN, state, task=toy_task(PLAN, round_id=4, past=past, attempt=attempt))
        reply = decode(fleet.devices[node].handle(Stage.FIT, encode(request)), (Ready, Failure))
        fleet.restart(node)
    assert isinstance(reply, Failure)
    for key, record in fleet.stores[fleet.names[node]].values.items():
        store.write(key, record)
    runs.ask(asking(signed))
    assert main(["client", "runs", "ls", "--home", str(home.path)]) == 0
    assert "refused in round 4: the coordinator signed a history" in capsys.readouterr().out
