"""A run that measures its learning rate, whole and killed, through real devices and the real secure sum."""

import sys
from pathlib import Path

import pytest

from fedpeft.round.rates.search import MULTIPLES, scale_of_losses
from fedpeft.testing.network import CoordinatorKilled
from fedpeft.testing.trainers import LinearTrainer, toy_plan_of
from fedpeft_server.run.run_view import read_run
from fedpeft_server.run.verdict import learning_rate_scale

sys.path.insert(0, str(Path(__file__).parent))
from world import SPEC, World, raising_at


def measuring(where: Path) -> World:
    """Four rounds that train."""
    world = World(where, count=4)
    train = world.config.train.model_copy(update={"learning_rate": "measured", "decay": "constant"})
    world.config = world.config.model_copy(update={"train": train})
    world.plan = toy_plan_of(world.config, SPEC)
    return world


def asked(world: World) -> dict[int, float]:
    """Round -> the scale that device a was given."""
    trainer = world.fleet.trainers["a"]
    assert isinstance(trainer, LinearTrainer)
    return {work.round_id: work.learning_rate_scale for work in trainer.fitted}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = measuring(tmp_path_factory.mktemp("whole"))
    world.train()
    return world


def test_the_second_round_measures_and_the_rest_of_the_run_takes_what_it_found(whole: World) -> None:
    assert whole.path is not None
    rows = read_run(whole.path).rounds
    assert [len(row.rate_losses) for row in rows] == [0, len(MULTIPLES), 0, 0, 0]
    found = scale_of_losses(rows[1].rate_losses)
    assert found != 1.0
    assert asked(whole) == {1: 0.0, 2: 0.0, 3: found, 4: found, 5: 0.0}
    assert learning_rate_scale(rows) == found


def test_the_losses_are_the_mean_models_on_everybodys_held_out_examples(whole: World) -> None:
    """Of the step itself (the third multiple is 1): what the same row says of the state that the round began with."""
    assert whole.path is not None
    row = read_run(whole.path).rounds[1]
    assert row.loss is not None
    assert row.rate_losses[MULTIPLES.index(1.0)] == pytest.approx(row.loss, rel=1e-3)


@pytest.mark.parametrize("round_id", [1, 2, 3])
def test_a_coordinator_killed_after_a_commit_goes_on_at_the_rate_that_was_measured(
    tmp_path: Path, whole: World, round_id: int
) -> None:
    world = measuring(tmp_path)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at("after", f"commit {round_id}"))
    world.restart()
    world.train()
    assert world.outcome() == whole.outcome()
