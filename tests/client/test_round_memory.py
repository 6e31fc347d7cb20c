"""What a device keeps for itself between rounds goes by the history that led to it."""

from dataclasses import replace

import numpy as np

from fedpeft.ids import BlockId
from fedpeft.testing.fleet import DictStore, toy_work
from fedpeft.testing.trainers import toy_plan, toy_spec
from fedpeft_client.training.round_memory import RoundMemory

SPEC = toy_spec({"head": 4})
PLAN = toy_plan(SPEC)
HEAD = BlockId("head")
ROUNDS = [toy_work(PLAN, SPEC, round_id=number) for number in (1, 2, 3)]


def kept(value: float) -> dict[BlockId, np.ndarray]:
    return {HEAD: np.full(4, value, np.float32)}


def test_a_round_begins_with_what_the_last_one_left_and_again_where_it_began() -> None:
    memory = RoundMemory(DictStore())
    assert memory.begin(ROUNDS[0]) == {}
    memory.keep(ROUNDS[0], kept(1.0))
    assert memory.begin(ROUNDS[0]) == {}, "another attempt at the round"
    np.testing.assert_array_equal(memory.begin(ROUNDS[1])[HEAD], kept(1.0)[HEAD])
    memory.keep(ROUNDS[1], kept(2.0))
    memory.keep(ROUNDS[1], kept(3.0))
    np.testing.assert_array_equal(memory.begin(ROUNDS[1])[HEAD], kept(1.0)[HEAD])
    np.testing.assert_array_equal(memory.begin(ROUNDS[2])[HEAD], kept(3.0)[HEAD])


def test_another_history_of_the_run_finds_nothing() -> None:
    """What was learnt from one history's states would tell about them in the other's sums."""
    memory = RoundMemory(DictStore())
    memory.keep(ROUNDS[0], kept(1.0))
    forked = replace(ROUNDS[1], history=bytes(32), earlier=frozenset([bytes(32), b"\1" * 32]))
    assert memory.begin(forked) == {}
    assert memory.begin(ROUNDS[1]) != {}
    memory.keep(forked, kept(5.0))
    assert memory.begin(ROUNDS[2]) == {}, "nor does the first history find what the other one left"


def test_an_earlier_round_of_the_same_history_finds_nothing() -> None:
    memory = RoundMemory(DictStore())
    memory.keep(ROUNDS[2], kept(1.0))
    assert memory.begin(ROUNDS[0]) == {}
