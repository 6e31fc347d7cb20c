"""A state that no training makes is not trained on."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec
from fedpeft.catalogue import BY_NAME
from fedpeft.catalogue.adalora import AdaLora
from fedpeft.catalogue.fish import Fish
from fedpeft.config.model import Adapter, Lora
from fedpeft.errors import PolicyRefused
from fedpeft.ids import BlockId
from fedpeft.round.device.last_runs import ASIDE
from fedpeft.round.messages import BlockPayload
from fedpeft.round.plan import LearningPlan
from fedpeft.testing.trainers import toy_plan, toy_spec, toy_state
from fedpeft.wire import encode
from fedpeft_client.training.device_stores import MemoryStore
from fedpeft_client.training.state_watch import StateWatch, WatchedState

SPEC = toy_spec({"head": 40})
PLAN = toy_plan(SPEC)
RATE = PLAN.train.learning_rate
HEAD = BlockId("head")


ELSEWHERE = PLAN.model_copy(update={"start": "ab" * 32})
"""It begins with a state that this device cannot make."""


def other(number: int) -> LearningPlan:
    return PLAN.model_copy(update={"run_id": f"other-{number}"})


def moved(by: float) -> AdapterState:
    state = toy_state(SPEC)
    return state.replace({HEAD: (state[HEAD] + np.float32(by)).astype(np.float32)})


def watching(most: float | None = 20.0, store: MemoryStore | None = None) -> Callable[..., None]:
    """A device's check, round by round, with what it keeps between them."""
    return partial(StateWatch(most, store or MemoryStore()).expect_near, start=lambda: moved(0.0))


def test_a_state_as_far_as_training_goes_is_taken_and_one_beyond_is_refused() -> None:
    watch = watching()
    watch(PLAN, moved(0.0), 0)
    watch(PLAN, moved(19.0 * RATE * 5), 5)
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watch(PLAN, moved(1e3), 10)
    watch(PLAN, moved(20.0 * RATE * 5), 10)


def test_the_largest_state_of_all_is_refused() -> None:
    watch = watching()
    watch(PLAN, moved(0.0), 0)
    with pytest.raises(PolicyRefused):
        watch(PLAN, moved(3e38), 5)


def test_rounds_that_the_device_missed_count_and_another_run_begins_anew() -> None:
    watch = watching()
    watch(PLAN, moved(0.0), 0)
    watch(PLAN, moved(19.0 * RATE * 50), 50)
    watch(PLAN.model_copy(update={"run_id": "another"}), moved(0.5), 60)


def test_a_process_that_ended_between_two_rounds_compares_all_the_same() -> None:
    """Else a coordinator would only have to wait until it has ended."""
    store = MemoryStore()
    watching(store=store)(PLAN, moved(0.0), 0)
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watching(store=store)(PLAN, moved(21.0 * RATE * 5), 5)
    watching(store=store)(PLAN, moved(19.0 * RATE * 5), 5)


def test_a_device_that_joins_late_compares_with_what_the_run_began_with() -> None:
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watching()(PLAN, moved(21.0 * RATE * 50), 50)
    watching()(PLAN, moved(19.0 * RATE * 50), 50)
    watching()(ELSEWHERE, moved(1e6), 50)


@pytest.mark.parametrize("plan", [PLAN, ELSEWHERE], ids=["own start", "warm start"])
@pytest.mark.parametrize("others", [1, ASIDE])
def test_rounds_of_other_runs_in_between_leave_each_run_compared_with_its_own_last_state(
    plan: LearningPlan, others: int
) -> None:
    """Else a run's first state is compared over all its steps, or nothing at all."""
    store = MemoryStore()
    for first_step in (0, 500):
        watching(store=store)(plan, moved(0.0), first_step)
        for number in range(others):
            watching(store=store)(other(number), moved(1.0 * number * RATE), first_step + 5)
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watching(store=store)(plan, moved(21.0 * RATE * 5), 505)
    watching(store=store)(plan, moved(19.0 * RATE * 5), 505)
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watching(store=store)(other(0), moved(21.0 * RATE * 5), 510)


def test_what_a_version_of_one_run_at_a_time_kept_is_compared() -> None:
    store = MemoryStore()
    state = moved(0.0)
    blocks = tuple(BlockPayload(block_id=name, values=state[name].astype("<f4").tobytes()) for name in state)
    store.write("watched-state", encode(WatchedState(run_id=ELSEWHERE.run_id, first_step=500, blocks=blocks)))
    watching(store=store)(other(0), moved(0.0), 5)
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watching(store=store)(ELSEWHERE, moved(21.0 * RATE * 5), 505)


def test_a_head_that_a_round_measured_may_be_anywhere_and_one_that_was_trained_may_not() -> None:
    means = PLAN.model_copy(update={"adapter": Adapter.having(Lora(rank=4), head_start="class-means")})
    watch, steps = watching(), PLAN.train.local_steps
    watch(means, moved(0.0), 0)
    watch(means, moved(1e3), steps)  # round 2 begins with the class means of round 1
    with pytest.raises(PolicyRefused, match="Expected head within"):
        watch(means, moved(2e3), 2 * steps)


CHOSEN = [
    (Fish(), "fish.places", [0, 3, 7, 389_376], [(1 << 24) + 2, -1, 0.5]),
    (AdaLora(rank=4), "adalora.mask", [0, 1, 1, 0], [2, -1, 0.5]),
]


@pytest.mark.parametrize(("method", "name", "honest", "wrong"), CHOSEN, ids=["fish", "adalora"])
def test_what_a_method_chooses_may_change_at_once_and_be_only_what_it_chooses(
    method: AdaLora | Fish, name: str, honest: list[float], wrong: list[float]
) -> None:
    """Places are whole numbers up to 2^24, and as steps of a learning rate a site with the rule left every such run."""
    block = BlockSpec(
        block_id=BlockId(name),
        method=name.split(".", maxsplit=1)[0],
        tensors=(TensorSpec(name="w", shape=(4,)),),
        trainable=False,
    )
    start = toy_state(AdapterSpec(blocks=(block, SPEC[HEAD]))).replace({block.block_id: np.zeros(4, np.float32)})
    plan = PLAN.model_copy(update={"adapter": Adapter.having(method)})
    steps = plan.train.local_steps
    watch = partial(StateWatch(20.0, MemoryStore()).expect_near, plan, start=lambda: start)
    watch(start, 0)
    watch(start.replace({block.block_id: np.array(honest, np.float32)}), steps)
    for value in wrong:
        with pytest.raises(PolicyRefused, match=f"whole numbers from 0 to .* in {name}"):
            watch(start.replace({block.block_id: np.array([value, 0, 0, 0], np.float32)}), 2 * steps)


def test_every_frozen_block_that_a_method_fills_in_is_one_that_it_says_it_chooses() -> None:
    said = {name for method in BY_NAME.values() for name, _ in method.chooses}
    assert said == {name for _, name, *_ in CHOSEN}
    assert all(method.between_rounds for method in BY_NAME.values() if method.chooses)


@pytest.mark.parametrize("size", [20.5, 1e4, np.inf, np.nan])
def test_a_control_that_leads_further_than_training_goes_is_refused(size: float) -> None:
    watch = watching()
    watch(PLAN, moved(0.0), 0, controls={HEAD: np.full(40, 19.5, np.float32)})
    with pytest.raises(PolicyRefused, match="Expected a control of head within"):
        watch(PLAN, moved(0.0), 5, controls={HEAD: np.full(40, size, np.float32)})


def test_without_a_rule_any_state_is_taken() -> None:
    watch = watching(None)
    for first_step, scale in enumerate((0.0, 1e30)):
        watch(PLAN, moved(scale), first_step)
