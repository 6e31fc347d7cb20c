"""Derived numbers, at the borders where they change."""

import pytest

from fedpeft.config.derived import invited_devices, lora_tiers, value_bits, wanted_devices
from fedpeft.config.model import Lora, Rounds, SecureAggregation


@pytest.mark.parametrize(
    ("rank", "tiers"), [(1, (1,)), (2, (2,)), (3, (2, 3)), (8, (2, 4, 8)), (9, (2, 4, 8, 9)), (16, (2, 4, 8, 16))]
)
def test_tiers_are_powers_of_two_and_end_in_the_rank(rank: int, tiers: tuple[int, ...]) -> None:
    assert lora_tiers(Lora(rank=rank)) == tiers


def test_tiers_that_are_given_are_kept() -> None:
    assert lora_tiers(Lora(rank=8, tiers=(3, 8))) == (3, 8)


@pytest.mark.parametrize(
    ("fraction", "available", "invited"),
    [(1.0, 6, 6), (0.5, 7, 4), (0.1, 30, 3), (0.1, 31, 4), (0.1, 5, 3), (1.0, 2, 2)],
)
def test_a_round_asks_the_fraction_rounded_up_but_a_quorum(fraction: float, available: int, invited: int) -> None:
    rounds = Rounds(fraction=fraction, min_devices=3)
    assert (invited_devices(rounds, available), wanted_devices(rounds, available)) == (invited, invited)


@pytest.mark.parametrize(
    ("over_select", "available", "invited"), [(0.3, 20, 13), (0.3, 3, 3), (0.5, 4, 4), (0.5, 5, 5), (1.0, 100, 100)]
)
def test_over_selection_asks_for_more_as_far_as_there_are_any(over_select: float, available: int, invited: int) -> None:
    rounds = Rounds(fraction=0.5, over_select=over_select)
    assert invited_devices(rounds, available) == invited
    assert wanted_devices(rounds, available) == max(3, -(-available // 2))


@pytest.mark.parametrize(("cohort", "bits"), [(1, 16), (2, 15), (3, 14), (4, 14), (5, 13), (256, 8), (257, 7)])
def test_a_sum_takes_the_bits_of_its_cohort(cohort: int, bits: int) -> None:
    assert value_bits(SecureAggregation(bits=16), cohort) == bits
