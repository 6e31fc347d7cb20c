"""Example-level privacy on the device: charged before anything leaves, refused past the budget, restored copies found.

No torch: the deltas are given, and only their price is real.
"""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedpeft.catalogue import METHODS
from fedpeft.catalogue.bitfit import BitFit
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import MethodPlugin
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.ids import BlockId, NodeId
from fedpeft.privacy import Budget, PrivacyLedger, sampled_epsilon
from fedpeft.round import example_privacy
from fedpeft.round.device.records import OpenRound
from fedpeft.round.example_privacy import ExamplePrivacy, noise_of, round_cost
from fedpeft.round.messages import Failure, FailureReason, Ready
from fedpeft.round.metrics import TRAIN_LOSS
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.size_class import lower_end, size_class, upper_end
from fedpeft.round.transport import Stage
from fedpeft.testing.fleet import ToyFleet, enrol, fit_request, toy_task
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

SPEC = toy_spec({"head": 40})
STATE = toy_state(SPEC)
TERMS = ExampleTerms(epsilon=3.0, delta=1e-3, l2_clip_norm=1.0, noise_multiplier=None, steps=12)
PLAN = toy_plan(SPEC).model_copy(update={"privacy": TERMS})  # local_steps = 4: three rounds
DEVICE = NodeId(1000)


class Site:
    """One device with a ledger among others without."""

    def __init__(self, where: Path, epsilon: float = math.inf) -> None:
        self.journal, self.witness = where / "device.jsonl", where / "elsewhere" / "witness"
        self.budget = Budget(epsilon=epsilon, delta=1e-3)
        trainers = {name: GivenTrainer(SPEC, {"head": np.ones(40, np.float32)}, examples=200) for name in "abc"}
        self.fleet: ToyFleet = enrol(trainers)
        self.restart()

    def restart(self) -> None:
        self.fleet.restart(DEVICE)
        device = self.fleet.devices[DEVICE]
        device._examples, self.told = ExamplePrivacy(self.ledger, device._store), []
        device._tell = lambda trouble: self.told.append(trouble.cause)

    def ledger(self) -> PrivacyLedger:
        return PrivacyLedger(self.journal, witness=self.witness, budget=self.budget)

    def entries(self) -> int:
        with self.ledger() as ledger:
            return len(ledger.entries)

    def fit(self, round_id: int, plan: LearningPlan = PLAN, attempt: int = 1) -> Ready | Failure:
        request = fit_request(self.fleet, plan, STATE, task=toy_task(plan, round_id=round_id, attempt=attempt))
        self.request = encode(request)
        return decode(self.fleet.devices[DEVICE].handle(Stage.FIT, self.request), (Ready, Failure))


def test_a_device_finds_its_own_noise_for_the_whole_run() -> None:
    costs = {n: round_cost(PLAN, declared=size_class(n), parameters=40) for n in (100, 700)}
    assert all(cost is not None for cost in costs.values())
    for n, cost in costs.items():
        assert cost.sampling_rate == pytest.approx(8 / lower_end(size_class(n)))
        assert 8 <= n * cost.sampling_rate < 16, "on average a batch or more, and less than two"
        assert cost.steps == 4
        whole = sampled_epsilon([(cost, 3)], TERMS.delta)
        assert 0.95 * 3.0 < whole <= 3.0
    assert costs[100].noise_multiplier > costs[700].noise_multiplier
    assert round_cost(toy_plan(SPEC), declared=7, parameters=40) is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"delta": 0.02}, "publishing one of them in full"),
        ({"noise_multiplier": 0.1}, "at least"),
        ({"epsilon": 1e-9}, "reaches"),
    ],
)
def test_a_plan_that_keeps_no_promise_is_refused_with_the_nearest_that_does(change: dict, found: str) -> None:
    plan = PLAN.model_copy(update={"privacy": TERMS.model_copy(update=change)})
    with pytest.raises(ConfigInvalid, match=found):
        round_cost(plan, declared=7, parameters=10**6)


@pytest.mark.parametrize("declared", [7, 14])
def test_a_delta_that_would_pay_for_publishing_one_of_the_examples_is_refused(
    declared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the most that a class can have, for its size is all that is told: up to one of so many, and no further."""
    monkeypatch.setattr(example_privacy, "calibrate_by_both", lambda *_: 1.0)  # how much noise is not the question
    most = math.ceil(upper_end(declared)) - 1
    for delta, right in ((0.9999 / most, True), (1.0001 / most, False)):
        terms = TERMS.model_copy(update={"delta": delta})
        if right:
            assert noise_of(terms, 8, declared, 10)[0] == 1.0
        else:
            with pytest.raises(ConfigInvalid, match="delta is too large"):
                noise_of(terms, 8, declared, 10)


def test_every_round_is_charged_before_its_reply_and_stated_in_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for round_id in (1, 2, 3):
        answer = site.fit(round_id)
        assert isinstance(answer, Ready)
        assert site.entries() == round_id
        assert answer.privacy is not None
        assert answer.privacy.steps == 4 * round_id
    assert 0.95 * 3.0 < answer.privacy.epsilon <= 3.0
    stated = answer.privacy
    assert stated.ours is not None
    assert stated.prv is not None
    assert stated.epsilon == max(stated.ours, stated.prv), "the larger is what counts, and both are told"
    assert stated.prv != stated.ours, "two programs"


@pytest.mark.parametrize(("unit", "stated"), [("example", 0), ("person", 3)])
def test_a_statement_says_how_many_examples_of_a_person_a_step_looks_at(unit: str, stated: int, tmp_path: Path) -> None:
    terms = TERMS.model_copy(update={"unit": unit, "examples_per_person": 3})
    plan = PLAN.model_copy(update={"privacy": terms})
    site = Site(tmp_path)
    cost = round_cost(plan, declared=size_class(200), parameters=40)
    assert site.fleet.devices[DEVICE]._examples.statement(plan, cost).examples_per_person == stated


def test_a_repeated_offer_and_another_attempt_release_and_cost_nothing_new(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first = site.fit(1)
    assert decode(site.fleet.devices[DEVICE].handle(Stage.FIT, site.request), Ready) == first
    assert isinstance(site.fit(1, attempt=2), Ready)
    assert site.entries() == 1


def test_another_attempt_at_the_round_that_spent_the_budget_costs_nothing_and_is_taken_part_in(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for round_id in (1, 2, 3):
        site.fit(round_id)
    assert isinstance(site.fit(3, attempt=2), Ready), "it is paid for, though nothing is left"
    assert site.entries() == 3
    site.fleet.stores["a"].values.clear()
    assert isinstance(site.fit(3, attempt=3), Failure), "what was trained is lost, and cannot be made again"


def test_a_training_that_is_lost_and_repeated_is_charged_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fit(1)
    site.fleet.stores["a"].values.clear()
    site.fit(1, attempt=2)
    assert site.entries() == 2


def test_a_round_of_another_run_in_between_buys_no_second_training_for_one_price(tmp_path: Path) -> None:
    """One round is open at a time: who asks for another run's makes the device train this one anew."""
    site = Site(tmp_path)
    site.fit(1)
    site.fit(1, PLAN.model_copy(update={"run_id": "another"}))
    assert isinstance(site.fit(1, attempt=2), Ready)
    with site.ledger() as ledger:
        runs = [entry.label.partition(" ")[0] for entry in ledger.entries]
    assert sorted(runs) == ["another", "toy-run", "toy-run"]


def test_past_the_runs_budget_the_device_refuses_and_a_restart_resets_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for round_id in (1, 2, 3):
        assert isinstance(site.fit(round_id), Ready)
    site.restart()
    refused = site.fit(4)
    assert isinstance(refused, Failure)
    assert refused.reason is FailureReason.REFUSED
    assert site.entries() == 3
    another = PLAN.model_copy(update={"run_id": "another-run"})
    assert isinstance(site.fit(1, another), Ready), "another run has its own budget where the site sets no limit"


def test_past_the_sites_own_budget_the_device_refuses_whatever_the_run_allows(tmp_path: Path) -> None:
    site = Site(tmp_path, epsilon=2.5)
    answers = [site.fit(round_id) for round_id in (1, 2, 3)]
    assert isinstance(answers[-1], Failure)
    assert answers[-1].reason is FailureReason.REFUSED
    assert "this site's own" in site.told[-1]


def test_a_device_without_a_ledger_takes_no_part(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fleet.restart(DEVICE)
    refused = site.fit(1)
    assert isinstance(refused, Failure)
    assert refused.reason is FailureReason.REFUSED


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"scaffold": True}),
        ("train", {"label_calibration": 1.0}),
        ("train", {"proximal_mu": 0.1}),
        ("aggregate", {"local": ("head",)}),
        ("aggregate", {"rule": "flora"}),
        ("aggregate", {"robust": "median"}),
        ("adapter", {"dtype": "bfloat16"}),
        *(("adapter", {method.name: method.example}) for method in METHODS if method.measures),
    ],
)
def test_a_device_refuses_what_is_not_proved_private_whatever_the_coordinator_checked(
    tmp_path: Path, section: str, change: dict
) -> None:
    site = Site(tmp_path)
    plan = PLAN.model_copy(update={section: getattr(PLAN, section).model_copy(update=change)})
    refused = site.fit(1, plan)
    assert isinstance(refused, Failure)
    assert refused.reason is FailureReason.REFUSED
    assert "not proved" in site.told[-1]
    assert site.entries() == 0


def test_a_device_refuses_the_method_of_a_plug_in_under_example_privacy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in's record, in the place of a method of ours, since loading fedpeft made the sections."""
    record = MethodPlugin(
        section=BitFit, footprint=lambda *_: Footprint(blocks={}), attach="x:y", title="a plug-in", formula="x"
    ).method("bitfit", "lab 0.3")
    changed = tuple(record if method.name == "bitfit" else method for method in METHODS)
    site = Site(tmp_path)
    plan = PLAN.model_copy(update={"adapter": PLAN.adapter.model_copy(update={"bitfit": BitFit()})})
    assert isinstance(site.fit(1, plan), Ready)
    monkeypatch.setattr("fedpeft.config.adapter.METHODS", changed)
    refused = Site(tmp_path / "other").fit(1, plan)
    assert isinstance(refused, Failure)
    assert refused.reason is FailureReason.REFUSED


def test_an_old_copy_of_the_devices_ledger_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fit(1)
    shutil.copy(site.journal, tmp_path / "backup")
    site.fit(2)
    shutil.copy(tmp_path / "backup", site.journal)
    refused = site.fit(3)
    assert isinstance(refused, Failure)
    assert "older or another copy" in site.told[-1]
    with pytest.raises(IntegrityFailed):
        site.ledger()


def test_nothing_is_measured(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fit(1)
    opened = decode(site.fleet.stores["a"].values["open-round"], OpenRound)
    inputs = {part.block_id: np.frombuffer(part.values, "<f4") for part in opened.inputs}
    assert set(inputs) == {BlockId("head"), TRAIN_LOSS}
    assert list(inputs[TRAIN_LOSS]) == [0.0]


@pytest.mark.parametrize("field", ["noise_multiplier", "sampling_rate"])
def test_a_statement_is_a_function_of_the_size_class(field: str) -> None:
    """Within a class all devices state the same; the exact number was q in the statement of every round."""
    stated = {getattr(round_cost(PLAN, declared=size_class(n), parameters=40), field) for n in range(91, 182)}
    assert len(stated) == 1


def test_the_coordinator_reads_from_its_statement_that_a_device_has_no_budget_left(tmp_path: Path) -> None:
    from fedpeft.config import parse
    from fedpeft_server.run.privacy_statements import spent

    site = Site(tmp_path)
    privacy = '[privacy]\nunit = "example"\nepsilon = 3.0\ndelta = 1e-3\n'
    steps = "[train]\nlocal_steps = 4\n"
    source = toy_run(f"[rounds]\ncount = 3\n{steps}{privacy}", clients=3, name="spent")
    config = parse(source, source="run.toml")
    answers = [site.fit(round_id) for round_id in (1, 2, 3)]
    statements = [answer.privacy for answer in answers if isinstance(answer, Ready)]
    assert all(statement is not None for statement in statements)
    known = {"early": statements[1], "late": statements[2]}
    assert spent(config, known, ["early", "late", "stranger"]) == ("late",)
    assert spent(config, known, ["early"]) == ()
