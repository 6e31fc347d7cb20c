"""Late work: a device that was not ready in time adds what it trained to a later round, once, and weighs less there."""

from pathlib import Path

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.flower.pace import PacedTransport, SimulatedClock
from fedpeft.ids import NodeId
from fedpeft.round.device.late import LastTrained, keep_trained, last_trained, note_masked
from fedpeft.round.device.records import KeptResult, run_key
from fedpeft.round.local import LocalResult
from fedpeft.round.plan import LearningPlan
from fedpeft.round.transport import Stage
from fedpeft.round.work import Work
from fedpeft.testing.fleet import DictStore, toy_work
from fedpeft.testing.network import Fault
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan
from fedpeft.wire import decode
from fedpeft_server.run.run_view import read_run
from tests.server.world import HEAD, INITIAL, NODES, SPEC, World, one_hot_fleet

SLOW_S = 3.5


class PacedWorld(World):
    """Four devices that take a second for a round, and one, e, that takes three and a half."""

    def weigh(self) -> None:
        """By examples, as late work needs."""
        changes = {"weight": "examples"}
        self.plan = self.plan.model_copy(update={"aggregate": self.plan.aggregate.model_copy(update=changes)})
        self.config = self.config.model_copy(update={"aggregate": self.config.aggregate.model_copy(update=changes)})

    def pace(self) -> SimulatedClock:
        clock, inner, before = SimulatedClock(), self.network, [0] * len(NODES)
        trainers = [self.fleet.trainers[name] for name in "abcde"]

        def computed() -> set[NodeId]:
            now = [len(trainer.fitted) for trainer in trainers if isinstance(trainer, GivenTrainer)]
            found = {node for node, was, is_ in zip(NODES, before, now, strict=True) if is_ > was}
            before[:] = now
            return found

        self.network = PacedTransport(  # type: ignore[assignment]
            inner, clock, fit_s=lambda node: SLOW_S if node == NODES[-1] else 1.0, computed=computed
        )
        return clock


def paced(where: Path, *, faults: list[Fault] | None = None, **rounds: object) -> tuple[PacedWorld, SimulatedClock]:
    usual = {"fraction": 0.8, "over_select": 1.0, "checkpoints_kept": 50, "min_devices": 3}
    world = PacedWorld(where, one_hot_fleet(), faults or [], **(usual | rounds))
    world.weigh()
    return world, world.pace()


def summed(world: World) -> list[bool]:
    """Of each round, whether e is in its sum."""
    assert world.path is not None
    return [
        any(one.client == "e" and one.state == "summed" for one in row.clients) for row in read_run(world.path).rounds
    ]


def heads(world: World) -> list[np.ndarray]:
    """The head after each round."""
    assert world.path is not None
    paths = sorted((world.path / "checkpoints").glob("r*/global.safetensors"))
    return [AdapterState.from_safetensors(SPEC, path.read_bytes())[HEAD] for path in paths]


def test_late_work_is_in_one_later_sum_with_half_its_weight(tmp_path: Path) -> None:
    world, clock = paced(tmp_path, count=4, max_staleness=5)
    world.train()
    assert summed(world)[:4] == [False, False, False, True]
    after = [head - INITIAL[HEAD] for head in heads(world)]
    step = 2e-4
    assert after[2] == pytest.approx([0.75, 0.75, 0.75, 0.75, 0.0], abs=step)
    # Ready half a second before the others: three of them with weight one, and e, three rounds late, with a half.
    moved = after[3] - after[2]
    assert moved[4] == pytest.approx(0.5 / 3.5, abs=step)
    assert sorted(moved[:4]) == pytest.approx([0.0, 1 / 3.5, 1 / 3.5, 1 / 3.5], abs=step)
    assert clock.now_s == pytest.approx(4.0 + SLOW_S)  # and the last evaluation, of everybody


def test_nobody_waits_for_it_and_nobody_loses_it(tmp_path: Path) -> None:
    world, clock = paced(tmp_path, count=12, max_staleness=5)
    world.train()
    assert world.path is not None
    rows = read_run(world.path).rounds[:12]
    assert clock.now_s <= 12.0 + 2 * SLOW_S  # the last evaluation waits for e, and for what it is at
    assert sum(summed(world)[:12]) == 3
    assert all(not row.rejected and not row.burnt for row in rows)


def test_without_it_the_same_device_is_never_heard(tmp_path: Path) -> None:
    world, _ = paced(tmp_path, count=12)
    world.train()
    assert summed(world) == [False] * 12 + [True]


def test_what_is_too_old_is_trained_anew(tmp_path: Path) -> None:
    world, _ = paced(tmp_path, count=6, max_staleness=2)
    world.train()
    slow = world.fleet.trainers["e"]
    assert isinstance(slow, GivenTrainer)
    assert [work.round_id for work in slow.fitted] == [1, 4, 7]
    assert not any(summed(world)[:6])


def test_an_attempt_that_fails_before_the_masks_costs_no_late_work(tmp_path: Path) -> None:
    lost = [Fault(kind="lose-reply", stage=Stage.SHARE, after=3)]  # everybody's, in round 4: attempted again
    world, _ = paced(tmp_path, faults=lost, count=5, max_staleness=5, max_failures=3)
    world.train()
    slow = world.fleet.trainers["e"]
    assert isinstance(slow, GivenTrainer)
    assert sum(summed(world)[:5]) == 1
    assert slow.fitted[0].round_id == 1


def test_what_was_masked_for_a_round_that_did_not_hear_it_goes_into_no_later_one(tmp_path: Path) -> None:
    """Its masked input has left: a second sum with the same deltas would be a pair to tell them apart."""
    lost = [Fault(kind="lose-reply", stage=Stage.MASK, node=NODES[0])]
    world = PacedWorld(tmp_path, one_hot_fleet(), lost, count=3, max_staleness=5, min_devices=3)
    world.weigh()
    world.train()
    first = world.fleet.trainers["a"]
    assert isinstance(first, GivenTrainer)
    assert [work.round_id for work in first.fitted][:3] == [1, 2, 3]


@pytest.fixture
def plan() -> LearningPlan:
    plan = toy_plan(SPEC, weight="examples")
    return plan.model_copy(update={"rounds": plan.rounds.model_copy(update={"max_staleness": 4})})


def work_of(plan: LearningPlan, round_id: int) -> Work:
    return toy_work(plan, SPEC, round_id=round_id)


def kept(store: DictStore, plan: LearningPlan, round_id: int) -> KeptResult:
    result = KeptResult.of(
        LocalResult(
            deltas={HEAD: one_hot(5, 1)}, trained_loss=1.0, trained=1, evaluated_loss=1.0, correct=1, evaluated=1
        )
    )
    keep_trained(store, plan, round_id, result)
    return result


def test_a_result_that_was_masked_once_goes_into_no_other_round(plan: LearningPlan) -> None:
    store = DictStore()
    result = kept(store, plan, 2)
    found = last_trained(store, plan, SPEC, work_of(plan, 4), {HEAD})
    assert (found.late, found.result) == (2, result)
    note_masked(store, plan.run_id, 4)
    assert last_trained(store, plan, SPEC, work_of(plan, 4), {HEAD}).result is not None, (
        "another attempt at the same round"
    )
    assert last_trained(store, plan, SPEC, work_of(plan, 5), {HEAD}).result is None


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("rounds", {"max_staleness": 1}),
        ("rounds", {"max_staleness": 0}),
        ("aggregate", {"weight": "uniform"}),
        ("aggregate", {"fold_every": 2}),
        ("aggregate", {"rule": "fedrot"}),
        ("secagg", {"mode": "off"}),
        ("train", {"scaffold": True}),
    ],
)
def test_a_coordinator_that_checked_nothing_gets_no_late_work(
    plan: LearningPlan, section: str, changes: dict[str, object]
) -> None:
    store = DictStore()
    kept(store, plan, 2)
    other = plan.model_copy(update={section: getattr(plan, section).model_copy(update=changes)})
    assert last_trained(store, plan, SPEC, work_of(plan, 4), {HEAD}).result is not None
    assert last_trained(store, other, SPEC, work_of(plan, 4), {HEAD}).result is None


def test_work_on_other_blocks_is_not_taken_for_this_rounds(plan: LearningPlan) -> None:
    store = DictStore()
    kept(store, plan, 2)
    everything = {block.block_id for block in SPEC.blocks}
    assert last_trained(store, plan, SPEC, work_of(plan, 4), everything).result is None


def test_a_plan_without_late_work_is_spelled_as_before(plan: LearningPlan) -> None:
    assert "max_staleness" not in toy_plan(SPEC).to_json()
    assert '"max_staleness":4' in plan.to_json()
    assert LearningPlan.from_json(plan.to_json()) == plan


def test_work_that_was_in_one_sum_is_never_free_for_another() -> None:
    """A device that was in the next round with zeros, and forgot them over another run, gave the same work again."""
    store, plan = DictStore(), toy_plan(SPEC).model_copy(update={"run_id": "late"})
    plan = plan.model_copy(update={"rounds": plan.rounds.model_copy(update={"max_staleness": 3})})
    kept(store, plan, 5)
    for round_id in (5, 6, 7):
        note_masked(store, "late", round_id)
        record = decode(store.read(run_key("late", "trained")) or b"", LastTrained)
        assert (record.round_id, record.masked) == (5, 5)
