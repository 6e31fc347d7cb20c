"""Variance, tails and probabilities against sums of the definition; entropy is seeded, so nothing here is flaky."""

import math
import time

import numpy as np
import pytest

from fedpeft.entropy import Entropy, os_entropy, seeded_entropy
from fedpeft.privacy.discrete_gaussian import (
    MAX_SIGMA,
    TABLE_BITS,
    UNDECIDED,
    _bernoulli_exp,
    _coarse,
    _table,
    discrete_gaussian,
)

SMALL = [0.3, 0.8, 2.0, 4.0, 63.9, 128.0, 300.0, 1000.5]
LARGE = [2.0**17 + 0.5, 3.3e6, MAX_SIGMA]
DRAWS = 200_000


def exact(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Integers and their probabilities, from the definition."""
    reach = math.ceil(12 * sigma) + 2
    x = np.arange(-reach, reach + 1)
    weight = np.exp(-(x.astype(float) ** 2) / (2 * sigma * sigma))
    return x, weight / weight.sum()


@pytest.mark.parametrize("sigma", SMALL)
def test_the_probabilities_are_those_of_the_discrete_gaussian(sigma: float) -> None:
    x, probability = exact(sigma)
    draws = discrete_gaussian(sigma, DRAWS, seeded_entropy(1, "chi", str(sigma)))
    observed = np.bincount(draws - x[0], minlength=len(x)).astype(float)
    expected = probability * DRAWS
    bins = np.cumsum(expected) // 50  # cells of 50 or more expected draws
    cells = np.unique(bins, return_inverse=True)[1]
    seen, wanted = np.bincount(cells, observed), np.bincount(cells, expected)
    keep = wanted > 5
    chi = float(((seen[keep] - wanted[keep]) ** 2 / wanted[keep]).sum())
    freedom = int(keep.sum()) - 1
    assert abs(chi - freedom) < 4.5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("sigma", [*SMALL, *LARGE])
def test_the_variance_is_the_closed_form(sigma: float) -> None:
    if sigma < 2000:
        x, probability = exact(sigma)
        variance, fourth = float(probability @ x.astype(float) ** 2), float(probability @ x.astype(float) ** 4)
    else:
        variance, fourth = sigma**2, 3 * sigma**4
    draws = discrete_gaussian(sigma, DRAWS, seeded_entropy(2, "variance", str(sigma))).astype(float)
    error = math.sqrt((fourth - variance**2) / DRAWS)
    assert abs(np.mean(draws**2) - variance) < 4 * error
    assert abs(draws.mean()) < 4 * math.sqrt(variance / DRAWS)


@pytest.mark.parametrize("sigma", [4.0, 1000.5, *LARGE])
def test_the_tails_are_the_closed_form(sigma: float) -> None:
    draws = np.abs(discrete_gaussian(sigma, DRAWS, seeded_entropy(3, "tails", str(sigma))))
    for at in (1.0, 2.0, 3.0, 4.0):
        edge = math.ceil(at * sigma)
        if sigma < 2000:
            x, probability = exact(sigma)
            chance = float(probability[np.abs(x) >= edge].sum())
        else:
            chance = math.erfc((edge - 0.5) / sigma / math.sqrt(2))
        assert abs((draws >= edge).sum() - DRAWS * chance) < 4.5 * math.sqrt(DRAWS * chance) + 1


@pytest.mark.parametrize("sigma", [*SMALL, *LARGE])
def test_the_table_sums_to_one_in_128_bits(sigma: float) -> None:
    table = _table(sigma)
    coarse = math.ldexp(sigma, -table.shift)
    assert coarse < 128
    assert table.shift == 0 or coarse >= 64
    cumulative = [(int(high) << 64) | int(low) for high, low in zip(table.high, table.low, strict=True)]
    assert cumulative == sorted(cumulative)
    left_out = (1 << TABLE_BITS) - cumulative[-1]
    assert left_out < 1 << 20, "what lies beyond the table is below 2^-108"
    first = 1 / sum(math.exp(-j * j / (2 * coarse * coarse)) for j in range(3000))
    assert cumulative[0] / 2.0**128 == pytest.approx(first, rel=1e-12)


def test_the_guide_agrees_with_the_full_comparison() -> None:
    """Every 16-bit prefix that the guide decides has one answer, and the rest are looked up."""
    table = _table(100.0)
    for prefix in range(0, 1 << 16, 7):
        low, high = prefix << 48, (prefix << 48) | ((1 << 48) - 1)
        both = {int(np.searchsorted(table.high, np.uint64(end), side="right")) for end in (low, high)}
        decided = int(table.guide[prefix])
        assert decided == UNDECIDED or both == {decided}


def scripted(*answers: bytes) -> Entropy:
    rest = list(answers)

    def draw(size: int) -> bytes:
        answer = rest.pop(0)
        assert len(answer) == size
        return answer

    return draw


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_when_64_bits_tie_the_next_64_decide(offset: int) -> None:
    table = _table(100.0)
    edge, low = int(table.high[5]), int(table.low[5])
    word = edge >> 48
    rest = ((edge & ((1 << 48) - 1)) << 16).to_bytes(8, "little")
    found = _coarse(table, np.array([word], np.uint16), scripted(rest, (low + offset).to_bytes(8, "little")))
    assert found.tolist() == [5 if offset < 0 else 6]


def test_a_proposal_is_kept_with_probability_exp() -> None:
    for exponent in (0.0, 1e-9, 0.01, 0.2):
        entropy = seeded_entropy(4, "keep", str(exponent))
        leading = np.frombuffer(entropy(2 * DRAWS), "<u2")
        kept = _bernoulli_exp(np.full(DRAWS, exponent), leading, entropy)
        chance = math.exp(-exponent)
        assert abs(kept.sum() - DRAWS * chance) < 4.5 * math.sqrt(DRAWS * chance * (1 - chance)) + 1e-3


@pytest.mark.parametrize("sigma", [0.8, 100.0, 1000.5, 2.0**20, MAX_SIGMA])
def test_what_is_kept_unseen_would_be_kept_with_certainty(sigma: float) -> None:
    """The quick half: for every j that it decides, its bound is below exp(-t) for the largest t that j allows."""
    table = _table(sigma)
    j, bound = table.quick >> np.uint32(16), (table.quick & np.uint32(0xFFFF)).astype(float)
    most = 2.0**table.shift - 1
    worst = most * (most + j * 2.0 ** (table.shift + 1)) / (2 * sigma * sigma)
    decided = bound > 0
    assert (bound[decided] / 2.0**16 < np.exp(-worst[decided])).all()
    assert (table.guide[decided] == j[decided]).all()
    assert (j[decided] > 0).all(), "zero has two signs, of which one is drawn again"
    if sigma > 500:
        assert decided.mean() > 0.9


def test_the_operating_system_never_gives_the_same_noise_twice() -> None:
    first, second = (discrete_gaussian(1e5, 1000, os_entropy) for _ in range(2))
    assert (first == second).mean() < 0.05


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, MAX_SIGMA * 1.01])
def test_a_parameter_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="Expected 0 < sigma"):
        discrete_gaussian(sigma, 1, os_entropy)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537])
def test_any_size_can_be_drawn(size: int) -> None:
    assert discrete_gaussian(7.0, size, os_entropy).shape == (size,)


def test_a_million_draws_cost_less_than_the_bar() -> None:
    """10 ms on an idle core; many times that on a busy one would be another algorithm."""
    discrete_gaussian(1e6, 10, os_entropy)
    start = time.process_time()
    discrete_gaussian(1e6, 1_000_000, os_entropy)
    assert time.process_time() - start < 0.2
