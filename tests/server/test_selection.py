"""Whom a round asks, and how long it waits for devices that do not say who they are."""

from collections.abc import Iterator, Mapping, Sequence

import pytest

from fedpeft.config.model import Adapter, Aggregate, Lora, Rounds, SecureAggregation, Task, Train
from fedpeft.ids import NodeId, RoundId
from fedpeft.round.messages import Profile
from fedpeft.round.plan import LearningPlan, PlannedRounds
from fedpeft.round.transport import Reply, Stage
from fedpeft.wire import encode
from fedpeft_server.run.selection import PROFILE_DEADLINE_S, Selection

PLAN = LearningPlan(
    run_id="run",
    seed=0,
    base="sha256:" + "a" * 64,
    adapter_spec="",
    task=Task(kind="causal-lm"),
    adapter=Adapter(lora=Lora()),
    train=Train(),
    aggregate=Aggregate(),
    rounds=PlannedRounds(count=1, eval_examples=0),
    secagg=SecureAggregation(),
)


class Asked:
    """A transport to devices that say who they are, but for those that are silent; counts the seconds of waiting."""

    def __init__(self, devices: int, silent: Sequence[int] = (), slow: Mapping[int, float] | None = None) -> None:
        self._devices, self.silent, self._slow = devices, set(silent), dict(slow or {})
        self.waited_s = 0.0
        self.others = 0

    def nodes(self) -> Sequence[NodeId]:
        return [NodeId(number) for number in range(self._devices)]

    def elsewhere(self) -> int:
        return self.others

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        assert stage is Stage.PROFILE
        begun_s, everybody = self.waited_s, True
        for node in requests:
            if node in self.silent or self._slow.get(node, 0.0) > begun_s + deadline_s:
                everybody = False
                continue
            name = f"ward-{node}"
            profile = Profile(
                device=name, organisation=name, identity=bytes([node]) * 32, methods="lora", held=(), after=0
            )
            yield Reply(node=node, payload=encode(profile), error="", seconds=0.0, bytes_down=0, bytes_up=0)
        if not everybody:
            self.waited_s += deadline_s


def selection(transport: Asked, *, least: int = 3) -> Selection:
    return Selection(PLAN, Rounds(count=3, min_devices=least), transport, lambda *_, **__: None)


def names(made: Selection, round_id: int) -> list[str]:
    return [member.profile.device for member in made.select(RoundId(round_id), ())[0]]


def test_a_device_that_never_says_who_it_is_costs_a_run_a_minute_and_then_less_and_less() -> None:
    transport = Asked(4, silent=[3])
    made = selection(transport)
    for round_id in range(1, 101):
        assert names(made, round_id) == ["ward-0", "ward-1", "ward-2"]
    assert transport.waited_s <= 60.0 + 7 * 20.0


def test_a_device_that_was_silent_is_asked_again_and_takes_part() -> None:
    transport = Asked(4, silent=[3])
    made = selection(transport)
    names(made, 1)
    transport.silent.clear()
    assert "ward-3" in [name for round_id in (2, 3, 4) for name in names(made, round_id)]


def test_a_round_that_needs_a_slow_device_waits_for_it_as_long_as_it_may_take() -> None:
    transport = Asked(3, slow={2: 200.0})
    assert names(selection(transport), 1) == ["ward-0", "ward-1", "ward-2"]


@pytest.mark.parametrize("round_ids", [range(1, 6)])
def test_silent_devices_are_asked_every_time_while_there_are_too_few_without_them(round_ids: range) -> None:
    transport = Asked(3, silent=[2])
    made = selection(transport)
    for round_id in round_ids:
        assert len(names(made, round_id)) == 2
    assert transport.waited_s == pytest.approx(len(round_ids) * PROFILE_DEADLINE_S)


def test_a_round_is_as_large_as_it_would_be_were_the_devices_that_another_run_has_free() -> None:
    transport = Asked(10)
    made = Selection(PLAN, Rounds(count=3, min_devices=3, fraction=0.5), transport, lambda *_, **__: None)
    assert len(names(made, 1)) == 5
    transport.others = 10
    members, wanted = made.select(RoundId(2), ())
    assert (len(members), wanted) == (10, 10)
    transport.others = 30
    members, wanted = made.select(RoundId(3), ())
    assert (len(members), wanted) == (10, 10)
