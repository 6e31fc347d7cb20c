"""Every interleaving of one round: crashes, lost replies, early deadlines; how many sums can be opened?

A model, not the product: four devices, up to three attempts, two crashes of the coordinator. A reply arrives, or the
device has acted and the coordinator hears nothing; a stage may be closed at any moment; a crash comes between any two
steps and leaves what is durable. What the product does at each real write is tests/server/test_one_sum.py's; here are
the rules themselves (docs/adr/0011-one-sum-per-round.md), and the proof that the model would find them broken.

Relaxed on purpose: three survivors suffice, of four, so that two survivor sets are possible at all. Quorum: three sign.
Known nondeterminism: none; the search is breadth-first and complete.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

DEVICES, QUORUM = 4, 3
NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Rules:
    """Args:
    pending: the survivors are durable before CONSIST, and a restarted coordinator goes on with them or burns the round.
    signs_once: a device that has signed takes part in no other attempt at the round; else in none of that start's.
    attempts, crashes: how many at most. Broken rules break with few, and have many more states.
    """

    pending: bool
    signs_once: bool
    attempts: int = 3
    crashes: int = 2


ONE_SUM = Rules(pending=True, signs_once=True)
INCARNATIONS = Rules(pending=False, signs_once=False, attempts=2, crashes=1)


class Device(NamedTuple):
    """The last attempt that it took part in, as (start, attempt), and the survivors it signed there."""

    seen: tuple[int, int] = (0, 0)
    signed: frozenset[int] | None = None


class State(NamedTuple):
    """``stage`` of the coordinator's memory; ``attempt``, ``kept`` and ``done`` are on its disk."""

    stage: str = "idle"
    start: int = 1
    attempt: int = 0
    inputs: frozenset[int] = NOBODY
    answered: frozenset[int] = NOBODY
    kept: frozenset[int] | None = None
    done: str = ""
    crashes: int = 0
    devices: tuple[Device, ...] = (Device(),) * DEVICES
    opened: frozenset[frozenset[int]] = frozenset()

    @property
    def now(self) -> tuple[int, int]:
        return self.start, self.attempt


def takes_part(rules: Rules, device: Device, now: tuple[int, int]) -> bool:
    if rules.signs_once:
        return device.signed is None and now[1] > device.seen[1]
    signed_in_this_start = device.signed is not None and device.seen[0] == now[0]
    return not signed_in_this_start and now > device.seen


def given_up(rules: Rules, state: State) -> State:
    """Too few answered in the last stages."""
    if rules.pending:
        return state._replace(done="burnt")
    return state._replace(stage="idle", start=state.start + 1, inputs=NOBODY, answered=NOBODY)


def steps(rules: Rules, state: State) -> Iterator[State]:
    """Every state that may come next."""
    if state.done:
        return
    yield from crash(rules, state)
    match state.stage:
        case "idle" if state.attempt < rules.attempts:
            yield state._replace(stage="mask", attempt=state.attempt + 1, inputs=NOBODY)
        case "idle":
            yield state._replace(done="given up")
        case "mask":
            for place, device in enumerate(state.devices):
                if place not in state.inputs and takes_part(rules, device, state.now):
                    moved = changed(state, place, Device(state.now))
                    yield moved  # its input is lost
                    yield moved._replace(inputs=state.inputs | {place})
            yield state._replace(stage="idle")
            if len(state.inputs) >= QUORUM:
                kept = state.inputs if rules.pending else None
                yield state._replace(stage="consist", answered=NOBODY, kept=kept)
        case "consist":
            yield from answers(state, sign=True)
            if len(state.answered) >= QUORUM:
                yield state._replace(stage="reveal", answered=NOBODY)
            yield given_up(rules, state)
        case "reveal":
            yield from answers(state, sign=False)
            if len(state.answered) >= QUORUM:
                yield state._replace(stage="open", opened=state.opened | {state.inputs})
            yield given_up(rules, state)
        case "open":
            yield state._replace(done="sum")


def answers(state: State, *, sign: bool) -> Iterator[State]:
    """A survivor signs these survivors, once; it reveals for those that it has signed; it repeats what it said."""
    for place in state.inputs - state.answered:
        device = state.devices[place]
        fits = device.signed == state.inputs or (sign and device.signed is None)
        if device.seen == state.now and fits:
            moved = changed(state, place, device._replace(signed=state.inputs))
            yield moved
            yield moved._replace(answered=state.answered | {place})


def crash(rules: Rules, state: State) -> Iterator[State]:
    if state.crashes == rules.crashes:
        return
    again = state._replace(crashes=state.crashes + 1, answered=NOBODY)
    if state.kept is not None:
        yield again._replace(stage="consist", inputs=state.kept)
    elif rules == INCARNATIONS:
        yield again._replace(stage="idle", inputs=NOBODY, start=state.start + 1)
    else:
        yield again._replace(stage="idle", inputs=NOBODY)


def changed(state: State, place: int, device: Device) -> State:
    return state._replace(devices=(*state.devices[:place], device, *state.devices[place + 1 :]))


def reachable(rules: Rules, *, stop_at_two: bool = False) -> Iterator[tuple[State, tuple[State, ...]]]:
    """Every reachable state with those that follow it."""
    seen, waiting = {State()}, deque([State()])
    while waiting:
        state = waiting.popleft()
        following = tuple(steps(rules, state))
        yield state, following
        if stop_at_two and len(state.opened) > 1:
            return
        new = set(following) - seen
        seen |= new
        waiting.extend(new)


def test_no_interleaving_opens_two_sums_of_a_round_and_none_ends_nowhere() -> None:
    ends = set()
    for state, following in reachable(ONE_SUM):
        assert len(state.opened) <= 1, state
        assert following or state.done, f"a dead end: {state}"
        ends.add(state.done)
    assert ends == {"", "sum", "burnt", "given up"}


def test_the_model_finds_the_defect_of_incarnations() -> None:
    found = [state for state, _ in reachable(INCARNATIONS, stop_at_two=True) if len(state.opened) > 1]
    assert found, "killed after the sum and before its commit, it opens another one"
    first, second = found[0].opened
    assert first != second


@pytest.mark.parametrize(
    "rules", [Rules(pending=True, signs_once=False), Rules(pending=False, signs_once=True, attempts=2, crashes=1)]
)
def test_either_side_alone_keeps_an_honest_coordinator_to_one_sum(rules: Rules) -> None:
    """So a device protects itself from a coordinator of another version, and a coordinator devices of another."""
    assert all(len(state.opened) <= 1 for state, _ in reachable(rules))


def test_without_crash_and_loss_a_round_ends_in_its_sum() -> None:
    """The one execution in which everybody answers and no deadline comes early."""
    order, state = ("idle", "mask", "consist", "reveal", "open"), State()
    for _ in range(20):
        following = [now for now in steps(ONE_SUM, state) if not now.crashes and now.done != "burnt"]
        if following:
            state = max(following, key=lambda now: (order.index(now.stage), len(now.inputs), len(now.answered)))
    assert (state.done, state.attempt, len(state.opened)) == ("sum", 1, 1)
