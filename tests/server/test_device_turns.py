"""Several runs over one fleet: no device works for two at once, nobody waits for ever, priorities hold."""

import itertools
import threading
from collections.abc import Callable, Sequence, Set

import numpy as np
import pytest

from fedpeft.clock import SystemClock
from fedpeft.ids import NodeId
from fedpeft.testing.clock import FakeClock
from fedpeft_server.jobs.device_turns import TURN_S, DeviceTurns

FLEET = frozenset(NodeId(number) for number in range(1, 9))


class MustWait(Exception):
    """It was not this run's turn."""


def sample(draw: np.random.Generator, nodes: Set[NodeId], count: int) -> Set[NodeId]:
    return frozenset(NodeId(int(node)) for node in draw.choice(sorted(nodes), count, replace=False))


def all_of_them(there: int) -> int:
    return there


def take(
    turns: DeviceTurns,
    number: int,
    wanted: Set[NodeId] = FLEET,
    needed: Callable[[int], int] = all_of_them,
    waits: Callable[[Sequence[int]], None] = lambda runs: None,
    priority: Callable[[], int] = lambda: 0,
) -> Set[NodeId]:
    turns.take(number, lambda: wanted, needed, priority=priority, interrupted=lambda: None, waits=waits)
    return turns.held(number)


def refuse(runs: Sequence[int]) -> None:
    raise MustWait(runs)


def entered(runs: int) -> DeviceTurns:
    turns = DeviceTurns(FakeClock())
    for number in range(1, runs + 1):
        turns.enter(number, 0)
    return turns


def test_two_runs_that_ask_everybody_take_turns() -> None:
    turns = entered(2)
    assert take(turns, 1) == FLEET
    with pytest.raises(MustWait) as waiting:
        take(turns, 2, waits=refuse)
    assert waiting.value.args == ([1],)
    turns.leave(1)
    assert take(turns, 2) == FLEET


def test_runs_of_different_groups_work_at_once() -> None:
    turns = entered(2)
    few = frozenset(sorted(FLEET)[:4])
    assert take(turns, 1, few) == few
    assert take(turns, 2, FLEET - few) == FLEET - few


def test_a_run_that_asks_a_sample_leaves_the_others_to_another_once_it_has_drawn_it() -> None:
    turns = entered(2)
    assert take(turns, 1, needed=lambda there: 3) == FLEET
    drawn = frozenset(sorted(FLEET)[:3])
    turns.keep(1, drawn)
    assert take(turns, 2, needed=lambda there: 3) == FLEET - drawn
    turns.give_back(2)
    with pytest.raises(MustWait):  # a run that asks all never makes a smaller round of those that are free
        take(turns, 2, waits=refuse)


def test_what_a_run_that_waits_wants_is_not_given_to_one_behind_it() -> None:
    turns = entered(3)
    few, rest = frozenset(sorted(FLEET)[:4]), frozenset(sorted(FLEET)[4:])
    take(turns, 1, few)
    waits = threading.Event()
    second = threading.Thread(target=take, args=(turns, 2), kwargs={"waits": lambda runs: waits.set()})
    second.start()
    assert waits.wait(10.0)
    with pytest.raises(MustWait):
        take(turns, 3, rest, waits=refuse)
    turns.leave(1)
    second.join(10.0)
    assert turns.held(2) == FLEET


def test_a_higher_priority_is_served_first_though_it_came_last() -> None:
    turns = entered(3)
    take(turns, 1)
    order, threads = list[int](), []
    for number in (2, 3):
        waits = threading.Event()

        def work(number: int = number, waits: threading.Event = waits) -> None:
            take(turns, number, waits=lambda runs: waits.set(), priority=lambda: 5 * (number == 3))
            order.append(number)
            turns.leave(number)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        assert waits.wait(10.0)
    turns.leave(1)
    for thread in threads:
        thread.join(10.0)
    assert order == [3, 2]


def test_a_priority_that_is_raised_while_the_run_waits_counts_at_once() -> None:
    turns, priority, waits, has = entered(2), [0], threading.Event(), threading.Event()
    take(turns, 1)

    def wait() -> None:
        take(turns, 2, waits=lambda runs: waits.set(), priority=lambda: priority[0])
        has.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(10.0)
    turns.give_back(1)
    assert take(turns, 1, waits=refuse) == FLEET  # it is ahead by its number
    priority[0] = 1
    threading.Event().wait(0.5)  # more than a look
    turns.give_back(1)
    with pytest.raises(MustWait):
        take(turns, 1, waits=refuse)
    assert has.wait(10.0)
    thread.join(10.0)


def test_a_round_whose_members_are_fixed_goes_before_every_other_run() -> None:
    turns = entered(2)
    turns.expect(2)
    with pytest.raises(MustWait):
        take(turns, 1, waits=refuse, priority=lambda: 100)
    assert take(turns, 2, waits=refuse) == FLEET
    turns.give_back(2)
    assert take(turns, 1, waits=refuse) == FLEET
    turns.give_back(1)
    turns.expect(7)
    turns.expect_no_more(7)
    assert take(turns, 1, waits=refuse) == FLEET


def test_two_runs_of_short_rounds_share_the_time_evenly_and_change_seldom() -> None:
    clock, rounds = FakeClock(), 200
    turns, order = DeviceTurns(clock), list[int]()
    both = threading.Barrier(2)
    for number in (1, 2):
        turns.enter(number, 0)

    def work(number: int) -> None:
        both.wait()
        for _ in range(rounds):
            take(turns, number)
            order.append(number)
            clock.advance(1.0)
            threading.Event().wait(0.0005)  # the other one comes to its wait
            turns.give_back(number)
        turns.leave(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert changes <= 2 * rounds / TURN_S + 3
    behind = [order[:end].count(1) - order[:end].count(2) for end in range(1, len(order))]
    assert max(map(abs, behind)) <= 2 * TURN_S + 2


@pytest.mark.parametrize("seed", range(2))
def test_no_device_ever_works_for_two_and_every_run_comes_to_its_end(seed: int) -> None:
    turns, draw = DeviceTurns(SystemClock()), np.random.default_rng(seed)
    owner, guard, wrong = dict[NodeId, int](), threading.Lock(), list[str]()
    wants = [sample(draw, FLEET, int(draw.integers(2, 9))) for _ in range(6)]
    done = []

    def work(number: int) -> None:
        wanted, own = wants[number], np.random.default_rng((seed, number))
        turns.enter(number, number % 2)
        for _ in range(20):
            sampled = own.random() < 0.5
            held = take(turns, number, wanted, (lambda there: min(there, 2)) if sampled else all_of_them)
            if not sampled and held != wanted:
                wrong.append(f"{number} got {len(held)} of {len(wanted)}")
            if sampled:
                held = sample(own, held, 2)
                turns.keep(number, held)
            with guard:
                wrong.extend(f"{node} has two" for node in held if node in owner)
                owner.update(dict.fromkeys(held, number))
            own.random() < 0.2 and threading.Event().wait(0.001)
            with guard:
                for node in held:
                    del owner[node]
            turns.give_back(number)
        turns.leave(number)
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert not wrong
    assert sorted(done) == list(range(6))


def test_another_attempt_never_waits_so_that_no_two_runs_wait_for_each_other() -> None:
    turns = entered(2)
    few, rest = frozenset(sorted(FLEET)[:4]), frozenset(sorted(FLEET)[4:])
    assert take(turns, 1, few) == few
    assert take(turns, 2, rest) == rest
    assert take(turns, 1, FLEET, waits=refuse) == few
    ahead = threading.Thread(target=take, args=(turns, 3, FLEET), kwargs={"priority": lambda: 5}, daemon=True)
    turns.enter(3, 5)
    ahead.start()
    threading.Event().wait(0.3)
    assert take(turns, 1, FLEET, waits=refuse) == few  # though one that is ahead waits for them
    turns.leave(1)
    turns.leave(2)
    ahead.join(10.0)
    assert turns.held(3) == FLEET
