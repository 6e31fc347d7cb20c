"""A coordinator that asks for a round again, under other terms, to see one device's data twice.

A quorum need not hold everybody: six devices can open a sum with the input of a seventh, who was taken to another
attempt meanwhile. Under the terms of that one its bucket is another, and its noise is drawn anew. Had it trained again
for that, with its own noise (example-level privacy), or masked again under fresh noise (client-level), the mean of the
two would hold half of the noise, and with every attempt less, for one charge.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.config.model import Rounds
from fedpeft.ids import BlockId, NodeId
from fedpeft.privacy import Budget, PrivacyLedger
from fedpeft.round.coordinator import run_round
from fedpeft.round.device.records import OpenRound
from fedpeft.round.local import Effort, LocalResult
from fedpeft.round.messages import Ready
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import Member, RoundTask
from fedpeft.round.transport import Reply, Stage
from fedpeft.round.work import Work
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import (
    CLIENT_PRIVACY,
    ToyFleet,
    enrol,
    exact_terms,
    fit_request,
    toy_noise,
    toy_task,
    toy_terms,
)
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

SPEC = toy_spec({"head": 4})
STATE = toy_state(SPEC)
HEAD = BlockId("head")
TERMS = exact_terms(7)
PLAN = toy_plan(SPEC, secagg=TERMS)
BUCKETS = PLAN.model_copy(update={"aggregate": PLAN.aggregate.model_copy(update={"buckets": 3, "robust": "median"})})
PRIVATE = PLAN.model_copy(update={"client_privacy": CLIENT_PRIVACY})
VICTIM = NodeId(1000)


class Fresh(GivenTrainer):
    """Each look at the examples gives another delta, as training with noise of its own does."""

    def __init__(self) -> None:
        super().__init__(SPEC, {"head": np.zeros(4, np.float32)})
        self._draws = np.random.default_rng(1)

    def fit(self, plan: LearningPlan, state: object, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        self.deltas[HEAD] = self._draws.integers(-64, 65, 4).astype(np.float32) / 64
        self._measured = (3.0, 5, 9)
        return super().fit(plan, STATE, work, effort)


def fresh_fleet(devices: int) -> ToyFleet:
    return enrol({f"d{i:02}": Fresh() for i in range(devices)})


def opened(fleet: ToyFleet) -> dict[BlockId, np.ndarray]:
    """What the victim puts into the sum, by the names of the adapter."""
    record = decode(fleet.stores["d00"].values["open-round"], OpenRound)
    return {BlockId(part.block_id.partition("@")[0]): np.frombuffer(part.values, "<f4") for part in record.inputs}


def asked(fleet: ToyFleet, plan: LearningPlan, members: Sequence[Member], attempt: int) -> tuple[BlockId, ...]:
    """An attempt at round 1 with these members; which sums the victim adds to."""
    task = toy_task(plan, attempt=attempt)
    if plan.client_privacy is not None:
        task = RoundTask(
            round_id=task.round_id,
            attempt=attempt,
            plan=plan,
            past=task.past,
            noise=toy_noise(plan, devices=len(members)),
        )
    terms = toy_terms(members, plan, STATE, task)
    request = fit_request(fleet, plan, STATE, task=task, terms=terms)
    reply = decode(fleet.devices[VICTIM].handle(Stage.FIT, encode(request)), Ready)
    return decode(reply.advertise, secagg.Advertise).blocks


def test_another_attempt_with_other_buckets_shows_the_same_look_at_the_data() -> None:
    fleet = fresh_fleet(18)
    members = fleet.members()
    rosters = [members[:9], [members[0], *members[9:17]], members[:12], [members[0], *members[6:17]], members]
    names, looks = [], []
    for attempt, roster in enumerate(rosters, 1):
        names.append(asked(fleet, BUCKETS, roster, attempt))
        looks.append(opened(fleet))
    assert len(set(names)) > 1, "the rosters put the victim into different buckets"
    for look in looks[1:]:
        for block_id, values in looks[0].items():
            np.testing.assert_array_equal(look[block_id], values, err_msg=block_id)
    trainer = fleet.trainers["d00"]
    assert isinstance(trainer, Fresh)
    assert len(trainer.fitted) == 1


def test_another_attempt_with_other_noise_clips_the_same_result_anew() -> None:
    fleet = fresh_fleet(12)
    asked(fleet, PRIVATE, fleet.members()[:7], 1)
    first = opened(fleet)
    asked(fleet, PRIVATE, fleet.members(), 2)
    second = opened(fleet)
    cosine = first[HEAD] @ second[HEAD] / (np.linalg.norm(first[HEAD]) * np.linalg.norm(second[HEAD]))
    assert cosine > 1 - 1e-6
    trainer = fleet.trainers["d00"]
    assert isinstance(trainer, Fresh)
    assert len(trainer.fitted) == 1


class Stealing(InMemoryTransport):
    """Before the survivors of an attempt are agreed on, the victim is taken to another attempt with other devices."""

    def __init__(self, fleet: ToyFleet, plan: LearningPlan, others: Sequence[Member]) -> None:
        super().__init__(fleet.handles, FakeClock())
        self.fleet, self.plan, self.others = fleet, plan, others
        self.second: secagg.Summed | secagg.Aborted | None = None

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``; the victim is not asked to sign for, or reveal, the sum that it is in."""
        if stage is Stage.CONSIST and self.second is None:
            self.second = summed(self.fleet, self.plan, self.others, attempt=2)
        late = stage in (Stage.CONSIST, Stage.REVEAL)
        present = {node: request for node, request in requests.items() if not (late and node == VICTIM)}
        yield from super().exchange(stage, present, deadline_s=deadline_s)


def summed(
    fleet: ToyFleet,
    plan: LearningPlan,
    members: Sequence[Member],
    *,
    attempt: int,
    transport: InMemoryTransport | None = None,
) -> secagg.Summed | secagg.Aborted:
    task = toy_task(plan, attempt=attempt, state=STATE)
    noise = toy_noise(plan, devices=len(members)) if plan.client_privacy else None
    return run_round(
        RoundTask(round_id=task.round_id, attempt=attempt, plan=plan, past=task.past, noise=noise),
        STATE,
        members,
        transport or InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(fit_deadline_s=100.0, stage_deadline_s=10.0),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
    ).result


@pytest.mark.parametrize("plan", [PLAN, PRIVATE], ids=["no noise", "noise"])
def test_under_noise_a_device_masks_once_a_round_though_others_can_open_its_input_without_it(
    plan: LearningPlan,
) -> None:
    fleet = fresh_fleet(13)
    members = fleet.members()
    stealing = Stealing(fleet, plan, [members[0], *members[7:]])
    first = summed(fleet, plan, members[:7], attempt=1, transport=stealing)
    assert isinstance(first, secagg.Summed)
    assert len(first.survivors) == 7, "the victim's input is in the sum that it did not sign"
    second = stealing.second
    if plan is PRIVATE:
        assert isinstance(second, secagg.Summed | secagg.Aborted)
        if isinstance(second, secagg.Summed):
            assert len(second.survivors) == 6, "the victim's input was summed again under fresh noise"
    else:  # two sums of one input are allowed without noise, since each hides it among a quorum of others
        assert isinstance(second, secagg.Summed)
        assert len(second.survivors) == 7


def test_a_site_pays_for_a_sum_that_was_opened_without_its_signature(tmp_path: Path) -> None:
    fleet = fresh_fleet(13)
    members = fleet.members()
    with PrivacyLedger(
        tmp_path / "site.jsonl", witness=tmp_path / "witness", budget=Budget(epsilon=60.0, delta=0.01)
    ) as budget:
        fleet.devices[VICTIM]._budget = budget
        stealing = Stealing(fleet, PRIVATE, [members[0], *members[7:]])
        assert isinstance(summed(fleet, PRIVATE, members[:7], attempt=1, transport=stealing), secagg.Summed)
        assert len(budget.entries) == 1


def test_an_accuracy_is_rounded_once_a_round() -> None:
    """Five of nine lies between two multiples of 1/64; the mean of many roundings would be five ninths."""
    fleet = fresh_fleet(7)
    draws = iter(range(100))
    fleet.devices[VICTIM]._rounding = lambda run_id, round_id: lambda count: bytes([next(draws) * 37 % 256]) * count
    found = set()
    for attempt in range(1, 9):
        asked(fleet, PLAN, fleet.members(), attempt)
        found.add(float(opened(fleet)[BlockId("metrics")][1]))
    assert len(found) == 1
