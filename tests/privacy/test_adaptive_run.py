"""A whole run with an adaptive clip norm: the bits in the secure sum, the budget, and what a kill keeps."""

import math
import sys
from pathlib import Path

import pytest

from fedpeft.errors import ConfigInvalid
from fedpeft.privacy import CLIP_BIT
from fedpeft.round.device.records import OpenRound
from fedpeft.round.transport import Stage
from fedpeft.testing.network import CoordinatorKilled, Fault
from fedpeft.wire import decode
from fedpeft_server.run.run_directory import RunDirectory

sys.path.insert(0, str(Path(__file__).parent))
from private_world import BITFIT, HEAD, World

ADAPTIVE = ('privacy.clip="adaptive"', "privacy.noise_multiplier=1.0", "privacy.epsilon=20.0")


def _clip_norm(world: World) -> float:
    assert world.path is not None
    with RunDirectory.open(world.path) as run:
        commit = run.last_commit()
    assert commit is not None
    norm = commit.server_state["l2_clip_norm"]
    assert isinstance(norm, float)
    return norm


def _terms_of(world: World) -> set[float]:
    """The clip norms of the last terms that each device accepted."""
    opened = [decode(store.values["open-round"], OpenRound) for store in world.fleet.stores.values()]
    assert all({part.block_id for part in one.inputs} == {HEAD, BITFIT, CLIP_BIT} for one in opened)
    return {one.noise.terms.l2_clip_norm for one in opened if one.noise is not None}


def test_a_clip_norm_far_below_all_norms_grows_by_what_the_bits_say(tmp_path: Path) -> None:
    """Norms of 800 against 1: every bit is unset, so a round multiplies by at most e^(rate * quantile)."""
    world = World(tmp_path, "rounds.count=12", "privacy.epsilon=60.0", *ADAPTIVE[:2])
    world.train()
    grown = _clip_norm(world)
    # The bits' noise has a standard deviation of 0.34 a round at most: twelve rounds of it are within 5 of their own.
    assert 1.0 < grown <= math.exp(12 * 0.2 * 0.5)
    assert _terms_of(world) != {1.0}


def test_every_round_is_charged_for_deltas_and_bit_together(tmp_path: Path) -> None:
    world = World(tmp_path, *ADAPTIVE)
    world.train()
    with world.ledger() as ledger:
        assert [entry.release.parameters for entry in ledger.entries] == [65, 65, 65]
        assert {entry.release.noise_multiplier for entry in ledger.entries} == {1.0}


def test_a_resumed_run_goes_on_with_the_clip_norm_that_was_committed(tmp_path: Path) -> None:
    # One step from 1.0 never ends at 1.0; of two, each cut at its largest, the second may take the first one back.
    world = World(tmp_path, "rounds.count=2", *ADAPTIVE, faults=(Fault(kind="kill", stage=Stage.FIT, after=1),))
    with pytest.raises(CoordinatorKilled):
        world.train()
    committed = _clip_norm(world)
    assert committed != 1.0
    world.restart()
    world.train()
    assert _terms_of(world) == {committed}, "the second round, the only one after the kill, used it"


def test_a_fixed_clip_norm_sends_no_bit(tmp_path: Path) -> None:
    world = World(tmp_path, "privacy.l2_clip_norm=0.5")
    world.train()
    opened = [decode(store.values["open-round"], OpenRound) for store in world.fleet.stores.values()]
    assert all({part.block_id for part in one.inputs} == {HEAD, BITFIT} for one in opened)


def test_bits_that_would_drown_are_refused_before_the_first_round(tmp_path: Path) -> None:
    world = World(tmp_path, *ADAPTIVE[:1], "privacy.noise_multiplier=8.0")
    with pytest.raises(ConfigInvalid) as refused:
        world.train()
    assert "devices a round for an adaptive clip" in str(refused.value.problems[0])
