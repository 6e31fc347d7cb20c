"""The chain of a run as its coordinator keeps it: with its commits, over restarts, through burnt rounds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from world import INITIAL, NODES, World, raising_at

from fedpeft import secagg
from fedpeft.errors import IntegrityFailed
from fedpeft.round.history import BURNT, Past
from fedpeft.round.messages import Failure, FailureReason, FitRequest, Link
from fedpeft.round.transport import Stage
from fedpeft.round.work import state_digest
from fedpeft.secagg.offer import open_terms
from fedpeft.testing.network import CoordinatorKilled, Fault
from fedpeft.wire import decode, encode
from fedpeft_server.run.run_view import read_run


def links(world: World) -> list[Link]:
    assert world.path is not None
    return [decode(bytes.fromhex(row.link), Link) for row in read_run(world.path).rounds]


def signed_histories(world: World) -> dict[int, set[bytes]]:
    """Fills up with the history in the terms of each round, as devices are given them."""
    seen: dict[int, set[bytes]] = {}
    for node, handle in list(world.network.devices.items()):

        def listening(stage: Stage, payload: bytes, handle=handle) -> bytes:  # type: ignore[no-untyped-def]
            if stage is Stage.FIT:
                offer = decode(decode(payload, FitRequest).offer, secagg.RoundOffer)
                terms = open_terms(offer.spec)
                seen.setdefault(terms.round_id, set()).add(terms.history)
            return handle(stage, payload)

        world.network.devices[node] = listening
    return seen


def test_every_round_has_a_link_and_the_terms_of_the_next_its_digest(tmp_path: Path) -> None:
    world = World(tmp_path)
    seen = signed_histories(world)
    world.train()
    plan = world.plan.model_copy(update={"run_id": read_run(world.path).manifest.run_id})  # type: ignore[arg-type]
    past = Past.begun(plan, state_digest(INITIAL.digests), world.fleet.coordinator.public)
    for number, link in enumerate(links(world), 1):
        assert link.round_id == number
        assert seen[number] == {past.head}
        assert (link.outcome != BURNT, link.devices, link.population) == (True, 5, 5)
        past = past.then(link)
    marks = [ledger.mark(plan.run_id) for ledger in world.fleet.ledgers.values()]
    assert {mark.history for mark in marks if mark} == seen[4]


def told(world: World) -> list[object]:
    return [(link.round_id, link.state, link.sums, link.owners, link.weight) for link in links(world)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Of a run that nobody killed."""
    world = World(tmp_path_factory.mktemp("whole"))
    world.train()
    return told(world)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["latest", "commit 1", "commit 2", "commit 4"])
def test_killed_at_any_commit_the_chain_is_that_of_a_run_that_was_not(
    tmp_path: Path, whole: list[object], when: str, what: str
) -> None:
    parts = World(tmp_path)
    with pytest.raises(CoordinatorKilled):
        parts.train(raising_at(when, what))
    parts.restart()
    parts.train()
    assert told(parts) == whole


def test_burnt_rounds_in_a_row_are_links_and_the_same_devices_go_on(tmp_path: Path) -> None:
    lost = [
        Fault(kind="lose-request", stage=Stage.REVEAL, node=node, times=2 * 2) for node in NODES[1:]
    ]  # asked twice in each of two rounds
    world = World(tmp_path, faults=lost, max_failures=3)
    world.train()
    found = links(world)
    assert [link.outcome == BURNT for link in found][:2] == [True, True]
    assert found[0].state == found[1].state == state_digest(INITIAL.digests)
    assert (found[0].weight, found[0].owners, found[0].sums) == (0, b"", BURNT)
    assert any(link.outcome != BURNT for link in found)


def test_a_run_is_resumed_after_a_burnt_round(tmp_path: Path) -> None:
    lost = [Fault(kind="lose-request", stage=Stage.REVEAL, node=node, times=2) for node in NODES[1:]]
    world = World(tmp_path, faults=lost)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at("after", "commit 1"))
    assert links(world)[0].outcome == BURNT
    world.restart()
    world.train()
    assert len(links(world)) == 4


def test_a_run_is_not_resumed_with_another_plan_or_first_state(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at("after", "commit 1"))
    world.restart()
    honest = world.plan
    world.plan = honest.model_copy(update={"max_state": 7.0})
    with pytest.raises(IntegrityFailed, match=r"plan.max_state: expected 10000.0, found 7.0"):
        world.train()
    world.plan = honest
    world.train()
    assert len(links(world)) == 4


def test_a_round_that_was_being_opened_is_not_finished_under_other_work(tmp_path: Path) -> None:
    world = World(tmp_path, faults=[Fault(kind="kill", stage=Stage.REVEAL)])
    with pytest.raises(CoordinatorKilled):
        world.train()
    assert world.path is not None
    (world.path / "terms.json").unlink()  # so that the difference is found at the kept sum
    world.plan = world.plan.model_copy(update={"max_state": 7.0})
    world.restart()
    with pytest.raises(IntegrityFailed, match="another work"):
        world.train()


def test_a_row_without_its_link_is_no_run_to_go_on_with(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at("after", "commit 2"))
    assert world.path is not None
    metrics = world.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"link":"4650', '"link":"4651'))
    world.restart()
    with pytest.raises(IntegrityFailed, match="link of round 1"):
        world.train()


def test_missing_history_is_answered_once_for_each_device_and_round(tmp_path: Path) -> None:
    """A device that lies for ever about what it lacks costs one more request a round."""
    world = World(tmp_path, count=2)
    asked: list[int] = []
    handle = world.network.devices[NODES[0]]

    def lying(stage: Stage, payload: bytes) -> bytes:
        if stage is not Stage.FIT:
            return handle(stage, payload)
        asked.append(len(payload))
        return encode(Failure(reason=FailureReason.MISSING_HISTORY, after=2**63))

    world.network.devices[NODES[0]] = lying
    world.train()
    assert len(asked) == 2 * 3
