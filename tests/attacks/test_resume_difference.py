"""A curious coordinator is killed after it has seen a round's sum, starts again without one device, and subtracts.

Until ADR 0011 this worked with unchanged messages: a resumed run was a new run to its devices, which summed the same
inputs again; the difference of the two sums was the update of the device that was left out.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.ids import NodeId
from fedpeft.round import coordinator
from fedpeft.round.transport import Stage
from fedpeft.testing.network import CoordinatorKilled, Fault

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from world import HEAD, NODES, World, one_hot_fleet, raising_at

VICTIM = NODES[3]


def sums_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Fills up with the head's sum of every round that trains, as the coordinator sees them."""
    seen: list[np.ndarray] = []
    closing = coordinator.SecureSum.close_stage

    def close_stage(self: coordinator.SecureSum) -> object:
        end = closing(self)
        if isinstance(end, secagg.Summed) and HEAD in end.sums:
            seen.append(end.sums[HEAD].values)
        return end

    monkeypatch.setattr(coordinator.SecureSum, "close_stage", close_stage)
    return seen


def without(world: World, node: NodeId) -> None:
    world.restart()
    del world.network.devices[node]


def test_killed_between_the_sum_and_its_commit_it_learns_nobodys_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, one_hot_fleet(), count=1)
    seen = sums_seen(world, monkeypatch)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at("before", "commit 1"))
    assert len(seen) == 1, "the sum was seen"
    without(world, VICTIM)
    world.train()
    assert len(seen) == 2, "the coordinator computes the sum again from what it kept"
    np.testing.assert_array_equal(seen[0] - seen[1], np.zeros(5), "the difference is the victim's update")


@pytest.mark.parametrize("stage", [Stage.CONSIST, Stage.REVEAL])
def test_killed_while_it_asks_for_the_opening_it_opens_the_same_survivors_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    """Kept replies of the first life plus a sum of the second would do as well: so there must not be another sum."""
    world = World(tmp_path, one_hot_fleet(), [Fault(kind="kill", stage=stage)], count=1)
    seen = sums_seen(world, monkeypatch)
    with pytest.raises(CoordinatorKilled):
        world.train()
    without(world, VICTIM)
    world.train()
    for values in seen:
        np.testing.assert_allclose(values, np.ones(5), atol=1e-6, err_msg="a sum over others than the first survivors")
