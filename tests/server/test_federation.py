"""A run from its first round to its last, killed at every point there is, and what it does about bad devices.

Crash points: before each exchange of each round, in the middle of a commit, before and after each publication. After
each of them the run directory is opened again, the devices have restarted, and the end must be that of a run that was
never killed: the same state, the same rows, the same published adapters. Known nondeterminism: none.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec
from fedpeft.entropy import seeded_entropy
from fedpeft.errors import OutsideHours, QuorumMissed
from fedpeft.ids import BlockId, NodeId
from fedpeft.round.events import EventKind
from fedpeft.round.messages import Failure, FailureReason, Profile
from fedpeft.round.plan import LearningPlan
from fedpeft.round.transport import Reply, Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol
from fedpeft.testing.network import CoordinatorKilled, Fault, FaultyTransport
from fedpeft.testing.trainers import GivenTrainer, LinearTrainer
from fedpeft.wire import decode, encode
from fedpeft_server.run.run_view import read_run

sys.path.insert(0, str(Path(__file__).parent))
from world import BLOCKS, HEAD, INITIAL, NODES, SPEC, TRAINING, World, one_hot_fleet, raising_at


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    world = World(tmp_path_factory.mktemp("whole"))
    state = world.train()
    assert world.outcome()["final"] == state.to_safetensors()
    return world.outcome()


SHORT = 2
"""Rounds of the runs that are killed: a first one, one that goes on from a state, and the last evaluation."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What such a run leaves when nobody kills it."""
    world = World(tmp_path_factory.mktemp("short"), count=SHORT)
    world.train()
    return world.outcome()


def test_a_run_commits_every_round_and_a_last_evaluation(uninterrupted: dict[str, object]) -> None:
    rows = uninterrupted["rows"]
    assert isinstance(rows, list)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    losses = [row[1] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0], "the federation learns"
    assert [row[3] is None for row in rows] == [False, False, False, True]
    assert uninterrupted["problems"] == []
    assert uninterrupted["final"] == uninterrupted["latest"] == uninterrupted["best"]


CRASHES = [
    *((when, f"commit {k}", 1) for when in ("before", "after") for k in range(1, SHORT + 2)),
    *((when, slot, k) for when in ("before", "after") for slot in ("best", "latest") for k in range(1, SHORT + 2)),
    ("before", "final", 1),
    ("after", "final", 1),
]


@pytest.mark.parametrize(("when", "what", "nth"), CRASHES)
def test_a_coordinator_killed_around_a_commit_ends_as_if_it_had_not_been(
    tmp_path: Path, short: dict[str, object], when: str, what: str, nth: int
) -> None:
    world = World(tmp_path, count=SHORT)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at(when, what, nth=nth))
    world.restart()
    world.train()
    assert world.outcome() == short


@pytest.mark.parametrize("round_id", range(1, SHORT + 2))
@pytest.mark.parametrize("stage", TRAINING)
def test_a_coordinator_killed_before_an_exchange_ends_as_if_it_had_not_been(
    tmp_path: Path, short: dict[str, object], stage: Stage, round_id: int
) -> None:
    world = World(tmp_path, faults=[Fault(kind="kill", stage=stage, after=round_id - 1)], count=SHORT)
    with pytest.raises(CoordinatorKilled):
        world.train()
    world.restart()
    world.train()
    assert world.outcome() == short


def test_a_run_killed_again_and_again_still_ends_the_same(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    world = World(tmp_path)
    for stage in TRAINING:
        world.network.faults = [Fault(kind="kill", stage=stage)]
        with pytest.raises(CoordinatorKilled):
            world.train()
        world.restart()
    for round_id in (1, 2, 3):
        with pytest.raises(CoordinatorKilled):
            world.train(raising_at("after", f"commit {round_id}"))
        world.restart()
    world.train()
    assert world.outcome() == uninterrupted


def test_a_finished_run_opened_again_changes_nothing(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    world = World(tmp_path)
    world.train()
    world.network.asked.clear()
    world.train()
    assert world.outcome() == uninterrupted
    assert world.network.asked == []


def test_nothing_is_published_before_it_is_committed(tmp_path: Path) -> None:
    world = World(tmp_path)
    order: list[str] = []

    def hook(when: str, what: str) -> None:
        order.append(f"{when} {what}")

    world.train(hook)
    for round_id in (1, 2, 3, 4):
        assert (
            order.index(f"after commit {round_id}")
            < [i for i, o in enumerate(order) if o == "before latest"][round_id - 1]
        )
    assert order[-2:] == ["before final", "after final"]


def test_one_hot_deltas_give_the_mean_that_a_hand_computes(tmp_path: Path) -> None:
    """Three rounds of one-hot deltas of weight 1: every coordinate has moved by 3/5. A replay would show as 4/5."""
    world = World(tmp_path, one_hot_fleet())
    state = world.train()
    moved = state[HEAD].astype(np.float64) - INITIAL[HEAD]
    np.testing.assert_allclose(moved, 3 / 5, atol=1e-6)
    assert state.digests[BlockId("bitfit")] == INITIAL.digests[BlockId("bitfit")], "nobody trains it"


def test_every_round_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    world = World(tmp_path, one_hot_fleet(), eval_examples=16)
    world.train()
    for trainer in world.fleet.trainers.values():
        assert isinstance(trainer, GivenTrainer)
        asked = [(r.first_step, round(r.learning_rate_factor, 3), r.eval_examples, r.train) for r in trainer.fitted]
        assert asked == [(0, 1.0, 16, True), (4, 0.667, 16, True), (8, 0.333, 16, True), (12, 0.0, 0, False)]


def test_a_resumed_run_publishes_what_the_killed_one_had_committed(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at("after", "commit 2"))
    world.restart()
    world.network.faults = [Fault(kind="kill", stage=Stage.PROFILE)]
    with pytest.raises(CoordinatorKilled):
        world.train()
    assert world.path is not None
    latest = (world.path / "adapters" / "latest" / "state").read_bytes()
    assert latest == (world.path / "checkpoints" / "r0002" / "global.safetensors").read_bytes()


def test_a_round_with_a_device_missing_divides_by_those_who_came(tmp_path: Path) -> None:
    world = World(tmp_path, one_hot_fleet(), [Fault(kind="lose-reply", stage=Stage.FIT, node=NODES[0])], count=1)
    moved = world.train()[HEAD].astype(np.float64) - INITIAL[HEAD]
    np.testing.assert_allclose(moved, [0, 0.25, 0.25, 0.25, 0.25], atol=1e-6)


def test_an_aborted_attempt_changes_nothing_and_is_tried_again(
    tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-reply", stage=Stage.MASK, after=1)])  # all of round 2
    world.train()
    assert world.outcome() == uninterrupted
    assert [event.round_id for event in world.events if event.kind is EventKind.ABORTED] == [2]
    assert world.path is not None
    kinds = [event.kind for event in read_run(world.path).events if event.round == 2]
    assert kinds.count("round.round-started") == 2
    assert kinds.count("round.aborted") == kinds.count("round.committed") == 1


@pytest.mark.parametrize("stage", TRAINING)
def test_a_network_that_fails_once_for_everybody_costs_one_attempt(
    tmp_path: Path, uninterrupted: dict[str, object], stage: Stage
) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-reply", stage=stage, after=1)])
    world.train()
    assert world.outcome() == uninterrupted


def test_too_many_aborted_attempts_end_the_run_and_keep_what_was_committed(
    tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-reply", stage=Stage.SHARE, after=1, times=None)])
    with pytest.raises(QuorumMissed, match="Round 2 was aborted 2 times") as stopped:
        world.train()
    assert world.path is not None
    assert str(world.path) in str(stopped.value)
    assert stopped.value.exit_code == 5
    assert [row.round for row in read_run(world.path).rounds] == [1]
    world.restart()
    world.train()
    assert world.outcome() == uninterrupted


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_devices_than_a_sum_needs_end_the_run_with_a_reason(tmp_path: Path, count: int) -> None:
    world = World(tmp_path)
    for node in NODES[count:]:
        del world.network.devices[node]
    with pytest.raises(QuorumMissed, match=f"{count} devices available, 3 needed"):
        world.train()
    assert all(stage is Stage.PROFILE for stage, _ in world.network.asked)


def test_a_sum_of_fewer_survivors_than_asked_for_is_not_applied(tmp_path: Path) -> None:
    world = World(
        tmp_path, faults=[Fault(kind="lose-reply", stage=Stage.MASK, node=NODES[0], times=None)], min_devices=5
    )
    with pytest.raises(QuorumMissed, match="4 devices finished, 5 needed"):
        world.train()
    assert world.path is not None
    assert read_run(world.path).rounds == ()
    assert Stage.REVEAL not in {stage for stage, _ in world.network.asked}, "what is not used is not opened either"


def asked_to_fit(world: World) -> list[tuple[NodeId, ...]]:
    return [nodes for stage, nodes in world.network.asked if stage is Stage.FIT]


def test_the_selection_follows_from_the_seed_and_the_round_alone(tmp_path: Path) -> None:
    worlds = [World(tmp_path / str(turn), fraction=0.6, count=6) for turn in range(2)]
    worlds[1].network.nodes = lambda: NODES[::-1]  # type: ignore[method-assign]
    for world in worlds:
        world.train()
    first, second = map(asked_to_fit, worlds)
    assert first == second
    assert all(len(nodes) == 3 for nodes in first)
    assert len(set(first)) > 1, "not the same three in every round"
    other = World(tmp_path / "other", fraction=0.6, count=6)
    other.plan = other.plan.model_copy(update={"seed": 1})
    other.train()
    assert asked_to_fit(other) != first


def test_a_resumed_run_selects_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = World(tmp_path / "whole", fraction=0.6, count=4)
    whole.train()
    parts = World(tmp_path / "parts", fraction=0.6, count=4)
    with pytest.raises(CoordinatorKilled):
        parts.train(raising_at("after", "commit 2"))
    first = asked_to_fit(parts)
    parts.restart()
    parts.train()
    assert first + asked_to_fit(parts) == asked_to_fit(whole)
    assert parts.outcome() == whole.outcome()


def test_never_fewer_than_the_minimum_are_asked(tmp_path: Path) -> None:
    world = World(tmp_path, fraction=0.1, count=2, min_devices=4)
    world.train()
    assert {len(nodes) for nodes in asked_to_fit(world)} == {4}


def test_devices_that_come_later_take_part_from_then_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    late = {node: world.network.devices.pop(node) for node in NODES[3:]}

    def hook(when: str, what: str) -> None:
        if (when, what) == ("after", "commit 1"):
            world.network.devices.update(late)

    world.train(hook)
    assert asked_to_fit(world) == [tuple(NODES[:3]), *[tuple(NODES)] * 3]


@pytest.mark.parametrize("reply", [b"", b"nonsense", encode(Failure(reason=FailureReason.PROTOCOL))])
def test_a_device_without_a_profile_is_not_asked_to_train(tmp_path: Path, reply: bytes) -> None:
    world = World(tmp_path)
    world.network.devices[NODES[1]] = lambda stage, payload: reply
    world.train()
    assert set(asked_to_fit(world)) == {tuple(node for node in NODES if node != NODES[1])}
    assert world.path is not None
    assert "profile.refused" in {event.kind for event in read_run(world.path).events}


def impostor(world: World, node: NodeId, **changes: object) -> Callable[[Stage, bytes], bytes]:
    """A device whose profile says something else than it should."""
    honest = world.fleet.handles[node]

    def handle(stage: Stage, payload: bytes) -> bytes:
        reply = honest(stage, payload)
        return encode(replace(decode(reply, Profile), **changes)) if stage is Stage.PROFILE else reply  # type: ignore[arg-type]

    return handle


def test_a_device_that_registered_twice_takes_part_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.network.devices[NodeId(2000)] = world.fleet.handles[NODES[0]]  # the same device, under a new node
    world.train()
    assert all(len(nodes) == 5 for nodes in asked_to_fit(world))


@pytest.mark.parametrize("changes", [{"identity": b"short"}, {"device": "a"}])
def test_a_profile_that_cannot_be_on_a_roster_does_not_stop_the_run(tmp_path: Path, changes: dict[str, object]) -> None:
    world = World(tmp_path)
    world.network.devices[NODES[4]] = impostor(world, NODES[4], **changes)
    world.train()
    assert world.path is not None
    assert [row.round for row in read_run(world.path).rounds] == [1, 2, 3, 4]


class Noting(FaultyTransport):
    """Keeps what deadline each fit request had."""

    deadlines: list[float]

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        if stage is Stage.FIT:
            self.deadlines.append(deadline_s)
        return super().exchange(stage, requests, deadline_s=deadline_s)


def test_the_last_evaluation_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, fit_deadline_s=60.0, evaluation_deadline_s=900.0)
    world.network = Noting(world.fleet.handles, world.clock, ())
    world.network.deadlines = []
    world.train()
    assert world.network.deadlines == [60.0, 60.0, 60.0, 900.0]


def test_the_rows_say_who_took_part_and_what_was_lost(tmp_path: Path) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-request", stage=Stage.MASK, node=NODES[1])], count=1)
    world.train()
    assert world.path is not None
    row, last = read_run(world.path).rounds
    assert {client.client: client.state for client in row.clients} == dict.fromkeys("acde", "summed") | {"b": "dropped"}
    assert (row.devices_invited, row.devices_ready, row.devices_survived) == (5, 5, 4)
    assert {client.client: client.methods for client in row.clients}["d"] == "head"
    assert {client.state for client in last.clients} == {"summed"}


def test_best_and_final_are_the_state_with_the_lowest_loss_not_the_last(tmp_path: Path) -> None:
    class Worse(LinearTrainer):
        """Its loss grows from round to round, whatever it learns."""

        rounds = 0

        def fit(self, plan, state, request, effort):  # type: ignore[no-untyped-def]
            self.rounds += 1
            return replace(super().fit(plan, state, request, effort), evaluated_loss=10.0 * abs(self.rounds - 2) + 1)

    world = World(tmp_path, enrol({name: Worse(name, SPEC, blocks) for name, blocks in BLOCKS.items()}))
    world.train()
    assert world.path is not None
    outcome = world.outcome()
    rows = read_run(world.path).rounds
    assert [round(row.loss or 0, 3) for row in rows] == [1.375, 0.125, 1.375, 2.625]
    assert outcome["best"] == (world.path / "checkpoints" / "r0001" / "global.safetensors").read_bytes()
    assert outcome["best"] == outcome["final"] != outcome["latest"]


def test_the_coordinators_key_must_be_the_one_that_devices_know(tmp_path: Path) -> None:
    world = World(tmp_path)
    stranger = secagg.IdentityKey.generate(seeded_entropy(9, "stranger"))
    world.fleet = replace(world.fleet, coordinator=stranger)
    with pytest.raises(QuorumMissed, match="too-few-devices"):
        world.train()


def test_over_selected_devices_that_were_not_needed_are_spared_and_asked_again_in_a_new_attempt(tmp_path: Path) -> None:
    """Their being late in the first attempt must not put them out of the second."""
    faults = [Fault(kind="lose-reply", stage=Stage.SHARE)]  # everybody's, once: the first attempt fails
    world = World(tmp_path, one_hot_fleet(), faults, count=2, fraction=0.6, over_select=0.6, min_devices=3)
    world.train()
    view = read_run(world.path) if world.path else None
    assert view is not None
    for row in view.rounds[:2]:
        states = [client.state for client in row.clients]
        assert (states.count("summed"), states.count("not_needed"), row.rejected) == (3, len(states) - 3, {})
    assert [row.devices_survived for row in view.rounds] == [3, 3, 5]
    assert [row.devices_invited for row in view.rounds[1:]] == [5, 5]


class NightlyTrainer(LinearTrainer):
    """Of a site that takes part from an hour on; being asked takes ten minutes."""

    def __init__(self, name: str, clock: FakeClock, opens_s: float) -> None:
        super().__init__(name, SPEC, BLOCKS[name])
        self._clock, self._opens_s = clock, opens_s

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        self._clock.advance(600.0)
        if self._clock.monotonic_s() < self._opens_s:
            raise OutsideHours("Expected a time in 22:00-06:00, found 12:00.")
        return super().spec(plan)


def nightly(where: Path, opens_s: float) -> World:
    clock = FakeClock()
    world = World(where, enrol({name: NightlyTrainer(name, clock, opens_s) for name in BLOCKS}), stage_deadline_s=1e5)
    world.clock = clock
    return world


def test_a_run_whose_sites_all_take_part_at_other_hours_waits_for_them(tmp_path: Path) -> None:
    world = nightly(tmp_path, opens_s=8 * 3600.0)
    world.train()
    aborted = [event for event in world.events if event.kind is EventKind.ABORTED]
    assert len(aborted) > world.config.rounds.max_failures, "these attempts do not count"
    assert world.outcome()["problems"] == []


def test_a_run_does_not_wait_for_hours_that_never_come(tmp_path: Path) -> None:
    world = nightly(tmp_path, opens_s=1e9)
    with pytest.raises(QuorumMissed, match="aborted 2 times"):
        world.train()
    assert 86_400 <= world.clock.monotonic_s() < 100_000


def test_a_round_that_opens_no_block_is_followed_by_the_next(tmp_path: Path) -> None:
    """Two owners a block are too few, so every block stays masked; who follows the state needs no words for it."""
    owned = {"a": "head", "b": "head", "c": "bitfit", "d": "bitfit"}
    fleet = enrol({name: LinearTrainer(name, SPEC, frozenset({block})) for name, block in owned.items()})
    world = World(tmp_path, fleet)
    state = world.train()
    assert world.path is not None
    rows = read_run(world.path).rounds
    assert [row.round for row in rows] == [1, 2, 3, 4]
    assert all({"head", "bitfit"} <= row.skipped.keys() for row in rows[:3])
    assert [row.devices_survived for row in rows] == [4, 4, 4, 4]
    assert state.digests == INITIAL.digests
