"""Killed after any of its durable writes, a coordinator that is started again opens one sum a round, or none.

Every durable write of a round is a crash point: attempt counter (S0), pending round (S4), each note of CONSIST and
REVEAL (S5 to S7), checkpoint and row (S8), removal (S9); docs/adr/0011. The devices keep what they wrote. What the
coordinator gets to see is recorded over all its lives. Failures covered: a kill; a device that is gone when the
coordinator is back. Not covered: power cuts that undo writes (tests/server/test_journal.py).
"""

import sys
from collections import defaultdict
from pathlib import Path

import pytest

from fedpeft.errors import IntegrityFailed, QuorumMissed
from fedpeft.round.transport import Stage
from fedpeft.testing.network import CoordinatorKilled, Fault
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run

sys.path.insert(0, str(Path(__file__).parent))
from crashes import Writes, watching_sums
from world import NODES, World, one_hot_fleet, raising_at

Sums = dict[int, set[str]]


def die(what: str) -> None:
    raise CoordinatorKilled(what)


def world(where: Path, **rounds: object) -> World:
    return World(where, one_hot_fleet(), **{"count": 1, **rounds})


def lives(a: World, fatal: int, *, gone: bool = False) -> Sums:
    """The sums of each round that two lives of the coordinator see, the first of which ends at a write."""
    seen: Sums = defaultdict(set)
    with watching_sums(lambda round_id, who, values: seen[round_id].add(f"{who} {values}")):
        writes = Writes(die, fatal)
        with writes.counted(), pytest.raises(CoordinatorKilled):
            a.train()
        a.restart()
        if gone:
            del a.network.devices[NODES[1]]
        a.train()
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], list[str]]:
    a = world(tmp_path_factory.mktemp("whole"))
    writes = Writes(die)
    with writes.counted():
        a.train()
    return a.outcome(), writes.made


def test_every_step_of_the_table_is_a_durable_write(whole: tuple[dict[str, object], list[str]]) -> None:
    made = whole[1]
    first = made.index("r0001")
    assert "attempts.json" in made[:first], "S0, before S4"
    closed = [place for place, what in enumerate(made) if what == "line"]
    assert first < closed[0], "S4 before S5"
    row = made.index("server.json")
    assert sum(first < place < row for place in closed) == 2 * (5 + 1), "five replies and an end, of two stages"
    assert row < made.index("unlinked r0001"), "S8 before S9"


@pytest.mark.parametrize("gone", [False, True], ids=["all-back", "one-gone"])
def test_killed_after_any_write_it_opens_one_sum_a_round(
    tmp_path: Path, whole: tuple[dict[str, object], list[str]], gone: bool
) -> None:
    outcome, made = whole
    writes = [place for place, what in enumerate(made, 1) if what == "attempts.json"]  # at creation, and a round
    for fatal in range(writes[1] if not gone else made.index("r0001") + 1, writes[2]):
        a = world(tmp_path / f"{fatal}")
        seen = lives(a, fatal, gone=gone)
        assert {round_id: len(sums) for round_id, sums in seen.items()} == {1: 1, 2: 1}, made[fatal - 1]
        if not gone:
            assert a.outcome() == outcome, f"killed after {made[fatal - 1]}"
        assert a.path is not None
        assert not (a.path / "pending").exists()


def test_killed_in_fast_mode_it_opens_one_sum_a_round(tmp_path: Path) -> None:
    def fast(where: Path) -> World:
        a = world(where)
        a.config = a.config.model_copy(update={"secagg": a.config.secagg.model_copy(update={"mode": "fast"})})
        return a

    a = fast(tmp_path / "whole")
    writes = Writes(die)
    with writes.counted():
        a.train()
    for fatal in range(writes.made.index("r0001") + 1, writes.made.index("r0001") + 9):
        seen = lives(fast(tmp_path / f"{fatal}"), fatal, gone=True)
        assert {round_id: len(sums) for round_id, sums in seen.items()} == {1: 1, 2: 1}


@pytest.mark.parametrize("stage", [Stage.CONSIST, Stage.REVEAL])
def test_a_burnt_round_is_never_repeated(tmp_path: Path, stage: Stage) -> None:
    """All devices are silent after they had sent their inputs: the number is used up, the state stays."""
    a = world(tmp_path, count=3)
    a.network.faults = [Fault(kind="lose-reply", stage=stage, after=1, times=2)]
    rounds_asked: list[int] = []
    with watching_sums(lambda round_id, who, values: rounds_asked.append(round_id)):
        a.train()
    assert a.path is not None
    rows = read_run(a.path).rounds
    assert [(row.round, bool(row.burnt)) for row in rows] == [(1, False), (2, True), (3, False), (4, False)]
    assert rows[1].checkpoint["global.safetensors"] == rows[0].checkpoint["global.safetensors"]
    assert rounds_asked == [1, 3, 4]
    asked = [stage for stage, _ in a.network.asked]
    assert asked.count(Stage.FIT) == asked.count(Stage.MASK) == 4, "no second attempt at any round"
    assert not (a.path / "pending").exists()


def test_a_round_whose_devices_are_gone_for_good_is_burnt_when_the_coordinator_is_back(tmp_path: Path) -> None:
    a = world(tmp_path, count=2)
    a.network.faults = [Fault(kind="kill", stage=Stage.REVEAL)]
    with pytest.raises(CoordinatorKilled):
        a.train()
    a.restart()
    for node in NODES:
        a.fleet.restart(node, wiped=True)
    a.train()
    assert a.path is not None
    assert [bool(row.burnt) for row in read_run(a.path).rounds] == [True, False, False]


def test_a_run_in_which_every_round_burns_ends_with_a_reason(tmp_path: Path) -> None:
    a = world(tmp_path, count=5)
    a.network.faults = [Fault(kind="lose-reply", stage=Stage.REVEAL, times=None)]
    with pytest.raises(QuorumMissed, match="last 2 rounds, found them all burnt"):
        a.train()
    assert a.path is not None
    assert [row.round for row in read_run(a.path).rounds] == [1, 2]


def test_an_attempts_number_is_never_used_again(tmp_path: Path) -> None:
    a = world(tmp_path)
    a.network.faults = [Fault(kind="kill", stage=Stage.MASK)]
    offers: list[tuple[int, int]] = []
    for life in range(2):
        with pytest.raises(CoordinatorKilled):
            a.train()
        a.restart()
        a.network.faults = [Fault(kind="kill", stage=Stage.MASK)] * (life == 0)
    a.train()
    assert a.path is not None
    for event in read_run(a.path).events:
        if event.kind == "round.round-started" and event.round == 1:
            offers.append((event.round, int(str(event.detail["detail"]).split()[1].rstrip(":"))))
    assert offers == [(1, 1), (1, 2), (1, 3)]


def test_only_its_owner_may_read_a_pending_round(tmp_path: Path) -> None:
    a = world(tmp_path)
    a.network.faults = [Fault(kind="kill", stage=Stage.REVEAL)]
    with pytest.raises(CoordinatorKilled):
        a.train()
    assert a.path is not None
    assert (a.path / "pending").stat().st_mode & 0o777 == 0o700
    files = list((a.path / "pending").iterdir())
    assert {file.name for file in files} == {"r0001", "notes.jsonl"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_run_of_an_earlier_version_is_not_resumed(tmp_path: Path) -> None:
    a = world(tmp_path)
    with pytest.raises(CoordinatorKilled):
        a.train(raising_at("after", "commit 1"))
    assert a.path is not None
    (a.path / "attempts.json").unlink()
    (a.path / "incarnation").write_bytes(b"1")
    with pytest.raises(IntegrityFailed, match="begun by an earlier version"):
        a.train()
    assert len(read_run(a.path).rounds) == 1, "it can still be read"


def test_no_attempt_is_begun_beside_a_pending_round(tmp_path: Path) -> None:
    a = world(tmp_path)
    a.network.faults = [Fault(kind="kill", stage=Stage.REVEAL)]
    with pytest.raises(CoordinatorKilled):
        a.train()
    assert a.path is not None
    with RunDirectory.open(a.path, clock=a.clock) as run, pytest.raises(IntegrityFailed, match="nothing pending"):
        run.begin_attempt(1)
