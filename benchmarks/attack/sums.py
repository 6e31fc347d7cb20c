"""Attacks on the secure sum by a coordinator that lies about who shared and who vanished (docs/threat-model.md).

Real devices where a round of them fits in a minute; above, the real rosters and graphs without their cryptography: what
decides there is how many colluders lie beside the victim, and that is counted exactly over many rosters.
"""

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from math import comb

import numpy as np
from attack.common import Finding

from fedpeft.cohorts import of_members
from fedpeft.ids import ParticipantId
from fedpeft.secagg.graph import circle, masking_degree, sharing_degree
from fedpeft.testing.lying_coordinator import (
    BLOCK,
    Loot,
    Stage2,
    ask_about_survivors,
    recover,
    two_block_round,
    until_masking,
)

__all__ = ["isolation", "split_sharers", "tier_with_two_colluders"]

VICTIM = ParticipantId(1)
FRACTION = 0.1
BLOCKS = 20


def split_sharers(devices: int) -> Callable[[bool], Finding]:
    """One device is shown other sharers than the rest; with 222e0cd its input was read with an error of 6e-9."""

    def attack(quick: bool) -> Finding:
        count = min(devices, 140) if quick else devices
        owners = range(1, 8) if count <= 128 else range(1, count + 1)
        fraction = FRACTION if count <= 128 else FRACTION / 2
        stage = until_masking(
            two_block_round(count, owners, corrupt_fraction=fraction, dropout_fraction=fraction, min_cohort=3)
        )
        loot, hidden, vanished = _split(stage)
        found, threshold = recover(stage, loot, VICTIM), stage.roster.degree.threshold
        shares = loot.of(VICTIM, stage.block)
        return Finding(
            learnt=f"nothing: {shares} of {threshold} shares of the victim's self mask",
            holds=found is None and shares == 0 and VICTIM in loot.masked,
            figures={
                "devices": count,
                "hidden_from_the_victim": hidden,
                "vanished_later": vanished,
                "masked_for_the_lie": VICTIM in loot.masked,
                "signed_the_survivors": loot.agreed,
                "revealed": loot.revealed,
                "error": None if found is None else _error(stage, found),
            },
        )

    return attack


def _split(stage: Stage2) -> tuple[Loot, int, int]:
    around = frozenset(stage.roster.masking_neighbours(VICTIM, stage.block))
    sharing = stage.roster.sharing_neighbours(VICTIM)
    slack = len(sharing) - stage.roster.degree.threshold
    hidden = frozenset([*sorted(around.intersection(sharing))[:slack], *around.difference(sharing)])
    everybody = frozenset(stage.roster.members)
    vanished = around - hidden
    return ask_about_survivors(stage, {VICTIM: everybody - hidden}, everybody - vanished), len(hidden), len(vanished)


def _error(stage: Stage2, found: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> float:
    return float(np.abs(found - stage.round.inputs[VICTIM][BLOCK]).max())


def isolation(devices: int) -> Callable[[bool], Finding]:
    """Chosen drop-outs around the device with the most colluding neighbours, after the roster is seen.

    Colluders are a tenth, drawn at random; every honest neighbour of the victim "vanishes". The block is opened, and
    the victim alone behind its colluders, iff at least t of its masking neighbours collude.
    """

    def attack(quick: bool) -> Finding:
        degree = masking_degree(devices, devices, FRACTION, FRACTION, BLOCKS)
        sharing = sharing_degree(devices, FRACTION, FRACTION)
        if degree is None or sharing is None:
            raise ValueError(f"Expected a circulant graph for {devices} devices, found none.")
        rosters = 20 if quick else 2000
        colluders, rng = of_members(FRACTION, devices), np.random.default_rng(devices)
        most, walls, isolated, cut = 0, 0, 0, 0
        for _ in range(rosters):
            beside, stretch = _beside(devices, colluders, degree.neighbours, rng)
            most, walls = max(most, beside), max(walls, stretch)
            isolated += beside >= degree.threshold
            cut += stretch >= degree.threshold - degree.neighbours // 2
        wall = _at_least(devices, colluders, degree.neighbours // 2, degree.threshold - degree.neighbours // 2)
        walls_bound = _log2(comb(devices, 2) * wall**2)
        bound = _log2(devices * _at_least(devices - 1, colluders, degree.neighbours, degree.threshold))
        return Finding(
            learnt=f"nothing: at most {most} colluding neighbours of {degree.threshold} needed, in {rosters} rosters",
            holds=isolated == 0 and cut == 0 and max(bound, walls_bound) <= -80,
            figures={
                "masking": [degree.neighbours, degree.threshold],
                "sharing": [sharing.neighbours, sharing.threshold],
                "rosters": rosters,
                "most_colluding_neighbours": most,
                "most_colluders_in_half_a_neighbourhood": walls,
                "walls_needed_twice": degree.threshold - degree.neighbours // 2,
                "log2_of_isolation_in_a_roster": bound,
                "log2_of_two_walls_in_a_roster": walls_bound,
            },
        )

    return attack


def _beside(devices: int, colluders: int, degree: int, rng: np.random.Generator) -> tuple[int, int]:
    """The most colluders beside an honest device, and in a stretch of half a neighbourhood, of one random roster."""
    order = circle(hashlib.sha256(rng.bytes(16)).digest(), range(1, devices + 1))
    bad = np.zeros(devices + 1, np.int64)
    bad[rng.choice(devices, colluders, replace=False) + 1] = 1
    around = bad[list(order)]  # (n,): along the circle
    half = degree // 2
    counted = np.concatenate([[0], np.cumsum(np.concatenate([around[-half:], around, around[:half]]))])
    beside = counted[2 * half + 1 :] - counted[:devices] - around
    stretch = counted[half : half + devices] - counted[:devices]
    return int(beside[around == 0].max()), int(stretch.max())


def _at_least(population: int, marked: int, drawn: int, threshold: int) -> Fraction:
    ways = sum(comb(marked, x) * comb(population - marked, drawn - x) for x in range(threshold, min(drawn, marked) + 1))
    return Fraction(ways, comb(population, drawn))


def _log2(value: Fraction) -> float:
    return round(math.log2(value.numerator) - math.log2(value.denominator), 1) if value else -1e9


def tier_with_two_colluders(_quick: bool) -> Finding:
    """20 devices, two of whom collude: may a block be opened in which one honest owner is left behind them?"""
    opened = {}
    for owners in (3, 4, 8):
        stage = until_masking(two_block_round(20, range(1, owners + 1), corrupt_fraction=FRACTION))
        loot = ask_about_survivors(stage, {}, frozenset(stage.roster.members))
        opened[owners] = any(block == stage.block for _, block in loot.shares)
        # The attack of the report: of eight owners all honest ones but one "vanish".
    stage = until_masking(two_block_round(20, range(1, 9), corrupt_fraction=FRACTION))
    gone = frozenset(ParticipantId(i) for i in range(4, 9))
    loot = ask_about_survivors(stage, {}, frozenset(stage.roster.members) - gone)
    left = any(block == stage.block for _, block in loot.shares)
    return Finding(
        learnt="nothing: a block with one honest owner beside two colluders stays masked",
        holds=not opened[3] and opened[4] and opened[8] and not left,
        figures={"opened_by_owners": opened, "opened_after_chosen_drop_outs": left},
    )
