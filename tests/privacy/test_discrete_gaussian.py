"""Variance, tails and probabilities against sums of the definition; entropy is seeded, so nothing here is flaky."""

import math
import time

import numpy as np
import pytest

from fedpeft.entropy import Entropy, os_entropy, seeded_entropy
from fedpeft.privacy import Release
from fedpeft.privacy.discrete_gaussian import (
    FLOAT_ERROR,
    MAX_SIGMA,
    RECTANGLE_BITS,
    UNDECIDED,
    _columns,
    _guide,
    _keep,
    _keep_exactly,
    _propose,
    _rectangles,
    _Table,
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


def rest_of(table: _Table) -> np.ndarray:
    """Of each column the probability with which the rest chooses it."""
    edges = [((int(h) << 64) | int(low)) / 2.0**128 for h, low in zip(table.high, table.low, strict=True)]
    return np.diff([0.0, *edges, 1.0])


def kept_shares(table: _Table, at: int) -> np.ndarray:
    """Of each place of a column the probability that it is kept, from the definition."""
    places = table.column[at] + np.arange(1 << table.shift)
    weight = np.exp(-(places.astype(float) ** 2) / (2 * table.sigma**2))
    return (weight / weight.max() - table.covered[at]) / (1 - table.covered[at])


@pytest.mark.drawn(3)
@pytest.mark.parametrize("sigma", [0.3, 4.0, 63.9, 128.0, 300.0, 1000.5, 5000.0])
def test_rectangles_and_rest_together_are_the_distribution(sigma: float) -> None:
    """Every probability that the two parts make, from the tables alone, against the definition."""
    table, width = _table(sigma), 1 << _table(sigma).shift
    chosen, shares = rest_of(table), [kept_shares(table, at) for at in range(len(table.column))]
    kept = sum(float(chance * share.mean()) for chance, share in zip(chosen, shares, strict=True))
    rest = 1 - int(table.limit) / 2.0**32
    found = {
        int(table.column[at]) + u: table.rectangles[at] / 2.0**RECTANGLE_BITS / width
        + rest * chosen[at] * shares[at][u] / kept / width
        for at in range(len(table.column))
        for u in range(width)
    }
    x, probability = exact(sigma)
    made = np.array([found.get(int(place), 0.0) for place in x])
    large = probability > 1e-30
    assert made[large] == pytest.approx(probability[large], rel=1e-9)
    assert sum(found.values()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("sigma", [*SMALL, *LARGE])
def test_rectangles_lie_below_the_lowest_probability_of_their_column(sigma: float) -> None:
    table = _table(sigma)
    for at in range(0, len(table.column), 7):
        shares = kept_shares(table, at)
        assert shares.min() >= -1e-12
        assert shares.max() == pytest.approx(1.0)
    assert (table.covered < 1).all()
    held = table.start[: int(table.limit) >> (32 - RECTANGLE_BITS)]
    assert np.array_equal(np.unique(held, return_counts=True)[0], np.sort(table.column[table.rectangles > 0]))
    assert len(held) == table.rectangles.sum()
    assert len(held) / 2.0**RECTANGLE_BITS > 0.98


@pytest.mark.parametrize("sigma", LARGE)
def test_bits_of_the_rectangle_and_of_the_place_are_different_ones(sigma: float) -> None:
    table = _table(sigma)
    assert int(table.mask) < 1 << 16
    assert int(table.column.max()) + (1 << table.shift) < 2**31
    words = np.array([(5 << 16) | 3, int(table.limit), int(table.limit) - 1], "<u4")
    out = np.empty(3, np.int32)
    assert _rectangles(table, out, lambda size: words.tobytes()[:size]).tolist() == [1]
    assert out[0] == table.start[5] + 3


def test_the_guide_agrees_with_the_full_comparison() -> None:
    """Every 16-bit prefix that the guide decides has one answer, and the rest are looked up."""
    table = _table(1e5)
    assert (table.guide != UNDECIDED).mean() > 0.9
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
    table = _table(1e5)
    edge, low = int(table.high[5]), int(table.low[5])
    answers = edge.to_bytes(8, "little"), (low + offset).to_bytes(8, "little")
    assert _columns(table, 1, scripted(*answers)).tolist() == [5 if offset < 0 else 6]


@pytest.mark.parametrize("at", [0, 40])
def test_a_place_is_kept_with_its_probability(at: int) -> None:
    table = _table(5000.0)
    for u in (0, 20, (1 << table.shift) - 1):
        x = np.full(DRAWS, table.column[at] + u)
        exponent = (x**2 - table.column[at] ** 2) / (2 * table.sigma**2)
        kept = _keep(table, np.full(DRAWS, at), x, exponent, seeded_entropy(4, "keep", str(u)))
        chance = float(kept_shares(table, at)[u])
        assert abs(kept.sum() - DRAWS * chance) < 4.5 * math.sqrt(DRAWS * chance * (1 - chance)) + 1e-3


def test_sixty_digits_decide_what_floats_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """All proposals decided both ways on the same bytes; and one that lies within what floats err."""
    from importlib import import_module

    module, table = import_module("fedpeft.privacy.discrete_gaussian"), _table(1e6)
    drawn, floats = _propose(table, 2000, seeded_entropy(5, "digits"))
    monkeypatch.setattr(module, "FLOAT_ERROR", 2.0)
    again, digits = _propose(table, 2000, seeded_entropy(5, "digits"))
    assert np.array_equal(drawn, again)
    assert np.array_equal(floats, digits)
    assert 0.3 < floats.mean() < 1
    monkeypatch.undo()
    assert FLOAT_ERROR < 2.0**-40


def test_what_floats_cannot_tell_from_a_tie_is_asked_of_sixty_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a draw of exactly the probability, as floats have it."""
    from importlib import import_module

    table, at, asked = _table(1e6), 40, list[int]()
    chance = float(kept_shares(table, at)[100])
    drawn = int(chance * 2**53) << 11
    x = int(table.column[at]) + 100
    nearest = int(table.column[at])
    exponent = np.array([(x * x - nearest * nearest) * (0.5 / (table.sigma * table.sigma))])
    answer = lambda *given: asked.append(given[2]) or True  # noqa: E731
    monkeypatch.setattr(import_module("fedpeft.privacy.discrete_gaussian"), "_keep_exactly", answer)
    entropy = lambda size: drawn.to_bytes(8, "little")[:size]  # noqa: E731
    assert _keep(table, np.array([at]), np.array([x]), exponent, entropy).tolist() == [True]
    assert asked == [x]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("offset", [0, 100, 8000])
def test_sixty_digits_keep_a_place_up_to_its_probability_and_no_further(mirrored: bool, offset: int) -> None:
    """In a column of either half; its most probable place, nearest to 0, up to 1."""
    table = _table(1e6)
    at = 40 + mirrored * len(table.column) // 2
    place = offset if not mirrored else (1 << table.shift) - 1 - offset
    x = int(table.column[at]) + place
    assert x > 0 or (mirrored and x < 0)
    chance = float(kept_shares(table, at)[place])
    bound = int(chance * 2**64)
    assert _keep_exactly(table, at, x, bound - (1 << 24), bytes)
    assert (chance == 1.0) == (offset == 0)
    if offset:
        assert not _keep_exactly(table, at, x, bound + (1 << 24), bytes)


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


@pytest.mark.parametrize("low", [0, 1, 1 << 40, (1 << 48) - 1])
@pytest.mark.parametrize("bucket", [0, 1, 2, 777, (1 << 16) - 1])
def test_the_guide_decides_no_bucket_that_a_threshold_lies_in_or_on_the_edge_of(bucket: int, low: int) -> None:
    """There the lower 64 bits may decide; all others it decides, and as a search would."""
    threshold = (bucket << 48) + low
    high = np.array([threshold], np.uint64)
    guide = _guide(high)
    assert guide[bucket] == UNDECIDED
    assert np.count_nonzero(guide == UNDECIDED) == 1
    assert (guide[:bucket] == 0).all()
    assert (guide[bucket + 1 :] == 1).all()


def test_the_stated_error_of_a_probability_is_what_the_accountants_count_with() -> None:
    release = Release(noise_multiplier=1.0, shares=3, share_sigma=1e5, parameters=1000, devices=7)
    assert release.rounding == 7 * 1000 * 2.0**-50


@pytest.mark.parametrize("sigma", [*SMALL, *LARGE])
def test_less_than_one_draw_in_2_to_the_128_lies_beyond_the_last_column(sigma: float) -> None:
    """Half of it on each side, by the normal distribution, whose tails are heavier from half a step inwards on."""
    table = _table(sigma)
    end = int(table.column.max()) + (1 << table.shift)  # the first number that no column holds
    assert math.erfc((end - 0.5) / (sigma * math.sqrt(2))) < 2.0**-128


def test_the_most_probable_place_of_every_column_is_the_one_nearest_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """No exponent is negative: a place above its column's top would be drawn too rarely, the others too often."""
    from importlib import import_module

    module, table = import_module("fedpeft.privacy.discrete_gaussian"), _table(1e6)
    exponents: list[float] = []

    def keeping(_table: object, at: np.ndarray, _x: object, exponent: np.ndarray, _entropy: object) -> np.ndarray:
        exponents.extend(exponent.tolist())
        return np.ones(len(at), np.bool_)

    monkeypatch.setattr(module, "_keep", keeping)
    first, last = int(np.flatnonzero(table.column == 0)[0]), int(table.column.argmin())
    for at in (first, 1, len(table.column) // 2, last):
        monkeypatch.setattr(module, "_columns", lambda _table, size, _entropy, at=at: np.full(size, at))
        _propose(table, 500, seeded_entropy(9, str(at)))
    assert min(exponents) >= 0.0
