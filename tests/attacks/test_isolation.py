"""Chosen drop-outs: the coordinator sees the sparse graph, and declares those vanished who hide one device.

On the code before the t_b rule (222e0cd) 56 of 500 chosen drop-outs gave one device's input with an error of 2e-7.
"""

import pytest

from fedpeft.ids import ParticipantId
from fedpeft.testing.lying_coordinator import Stage2, ask_about_survivors, recover, two_block_round, until_masking

VICTIM = ParticipantId(1)


def sparse(owners: int) -> Stage2:
    terms = {"corrupt_fraction": 0.05, "dropout_fraction": 0.05}
    # Owners far apart in id, near in nothing else: the circle is a hash.
    return until_masking(two_block_round(160, range(1, owners + 1), **terms))


@pytest.mark.parametrize("owners", [140, 160])
def test_isolation_by_chosen_drop_outs_opens_nothing(owners: int) -> None:
    stage = sparse(owners)
    degree = stage.roster.masking_degree(stage.block)
    assert degree is not None
    around = frozenset(stage.roster.masking_neighbours(VICTIM, stage.block))
    loot = ask_about_survivors(stage, {}, frozenset(stage.roster.members) - around)
    assert loot.revealed > 80, "enough devices go on: what stays closed is the block"
    assert not any(block == stage.block for _, block in loot.shares), "no share of any of its self masks"
    assert recover(stage, loot, VICTIM) is None


def test_a_circle_cut_in_two_by_chosen_drop_outs_opens_nothing() -> None:
    """Two walls of k/2 owners each vanish: the halves share no mask, and each half's sum would be opened."""
    stage = sparse(160)
    degree = stage.roster.masking_degree(stage.block)
    assert degree is not None
    order, half = stage.roster._block_circles[stage.block], degree.neighbours // 2
    walls = frozenset(ParticipantId(m) for m in (*order[:half], *order[80 : 80 + half]))
    loot = ask_about_survivors(stage, {}, frozenset(stage.roster.members) - walls)
    assert loot.revealed > 80
    assert not any(block == stage.block for _, block in loot.shares)


def test_one_vanished_neighbour_more_than_allowed_closes_the_block_for_all() -> None:
    stage = sparse(160)
    degree = stage.roster.masking_degree(stage.block)
    assert degree is not None
    spared = degree.neighbours - degree.threshold
    around = sorted(stage.roster.masking_neighbours(VICTIM, stage.block))
    for count, opens in ((spared, True), (spared + 1, False)):
        fresh = sparse(160)
        loot = ask_about_survivors(fresh, {}, frozenset(fresh.roster.members) - set(around[:count]))
        assert any(block == fresh.block for _, block in loot.shares) is opens
        assert recover(fresh, loot, VICTIM) is None
