"""Split sharer sets: one device is told that the others did not share, masks for nobody, and is called a survivor.

On the code before the signatures over the sharers (222e0cd) this gave one device's input with an error of 6e-9, without
a single colluder, on complete graphs and on sparse ones.
"""

import numpy as np
import pytest

from fedpeft.ids import ParticipantId
from fedpeft.secagg.device_state import Masked
from fedpeft.testing.lying_coordinator import (
    BLOCK,
    Loot,
    Stage2,
    ask_about_survivors,
    collect_inputs,
    recover,
    two_block_round,
    until_masking,
)

VICTIM = ParticipantId(1)


@pytest.mark.parametrize("owners", [7, 12])
def test_split_sharers_on_a_complete_graph_open_nothing(owners: int) -> None:
    """20 devices. Of the block's owners as many are hidden from the victim as it bears; the others "vanish" later."""
    stage = until_masking(two_block_round(20, range(1, owners + 1)))
    others = frozenset(ParticipantId(i) for i in range(2, owners + 1))
    slack = len(stage.roster.sharing_neighbours(VICTIM)) - stage.roster.degree.threshold
    hidden = frozenset(sorted(others)[:slack])
    everybody = frozenset(stage.roster.members)
    loot = ask_about_survivors(stage, {VICTIM: everybody - hidden}, everybody - (others - hidden))
    assert VICTIM in loot.masked, "the device cannot know what the others were told"
    assert loot.agreed > 10, "nor can the others: they agree"
    assert loot.revealed == 0, "but nobody reveals for a survivor that did not sign what they saw"
    assert recover(stage, loot, VICTIM) is None


def test_the_attacker_of_these_tests_does_recover_what_it_is_given() -> None:
    """The control: were the shares handed over, its arithmetic gives the input."""
    attacked = two_block_round(20, range(1, 8))
    stage = until_masking(attacked)
    others = frozenset(ParticipantId(i) for i in range(2, 8))
    everybody = frozenset(stage.roster.members)
    loot = collect_inputs(stage, {VICTIM: everybody - others})
    _hand_over(stage, loot)
    found = recover(stage, loot, VICTIM)
    assert found is not None
    assert np.abs(found - attacked.inputs[VICTIM][BLOCK]).max() < 1e-8


def _hand_over(stage: Stage2, loot: Loot) -> None:
    """Every holder's share of the victim's seed, as it lies in the ciphertexts that it opened."""
    place = 1 + list(stage.roster.owned_by(VICTIM)).index(stage.block)
    for holder in stage.roster.sharing_neighbours(VICTIM):
        state = stage.round.fleet.ledgers[holder].load("run")
        assert isinstance(state, Masked)
        shares = state.held_shares[stage.roster.sharing_neighbours(holder).index(VICTIM)].value
        loot.shares.setdefault((VICTIM, stage.block), {})[holder] = shares[33 * place : 33 * (place + 1)]


def test_split_sharers_on_a_sparse_graph_open_nothing() -> None:
    stage = until_masking(two_block_round(132, range(1, 133), corrupt_fraction=0.05, dropout_fraction=0.05))
    around = frozenset(stage.roster.masking_neighbours(VICTIM, stage.block))
    assert len(around) < 131, "a sparse graph"
    sharing = stage.roster.sharing_neighbours(VICTIM)
    slack = len(sharing) - stage.roster.degree.threshold
    hidden = frozenset([*sorted(around.intersection(sharing))[:slack], *(around.difference(sharing))])
    everybody = frozenset(stage.roster.members)
    loot = ask_about_survivors(stage, {VICTIM: everybody - hidden}, everybody - (around - hidden))
    assert loot.of(VICTIM, stage.block) == 0
    assert recover(stage, loot, VICTIM) is None
