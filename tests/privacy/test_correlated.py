"""Correlated noise: the matrix against jax_privacy and brute force, the rows against the matrix, and what is kept.

tests/privacy/vectors/correlated.json was written with jax_privacy 2.0, which is no dependency (the program is beside
it): the closed form's coefficients, inverted and measured by its ``matrix_factorization.toeplitz``, and epsilons of
cyclic Poisson sampling by its ``accounting.analysis``.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.entropy import Entropy, os_entropy, seeded_entropy
from fedpeft.ids import BlockId
from fedpeft.privacy import (
    BANDS,
    CorrelatedNoise,
    NoiseStream,
    SampledRelease,
    coefficients,
    column_norm,
    noise_stream,
    opinions,
    root_mean_square,
    sampled_epsilon,
    turns,
)
from fedpeft.privacy.correlated import inverse, workload
from fedpeft.wire import decode, encode

ORACLE = json.loads((Path(__file__).parent / "vectors" / "correlated.json").read_text())
BLOCKS = (BlockId("head"), BlockId("lora"))


def matrix(first_column: tuple[float, ...], steps: int) -> npt.NDArray[np.float64]:
    """C, written out."""
    found = np.zeros((steps, steps))
    for row, column in itertools.product(range(steps), repeat=2):
        if 0 <= row - column < len(first_column):
            found[row, column] = first_column[row - column]
    return found


@pytest.mark.parametrize("known", ORACLE["matrices"], ids=lambda one: f"b{one['bands']} m{one['momentum']:.2g}")
def test_the_matrix_is_jax_privacys(known: dict) -> None:
    found = coefficients(known["bands"], known["momentum"])
    assert np.allclose(found, known["coefficients"], rtol=1e-12, atol=0)
    assert np.allclose(inverse(found, 40)[: len(known["inverse"])], known["inverse"], rtol=1e-9, atol=1e-12)
    assert turns(0, known["steps"], known["bands"]) == known["participations"]
    squared = known["participations"] * column_norm(found) ** 2
    # of the last turn only some rows are there: ours is at most that much larger, never smaller
    assert known["sensitivity_squared"] * (1 - 1e-12) <= squared
    if known["steps"] % known["bands"] == 0:
        assert squared == pytest.approx(known["sensitivity_squared"], rel=1e-12)
    left = root_mean_square(found, known["steps"], known["momentum"])
    assert left**2 == pytest.approx(known["mean_squared_error"], rel=1e-10)


@pytest.mark.parametrize("known", ORACLE["epsilons"], ids=lambda one: f"z{one['noise_multiplier']} b{one['bands']}")
def test_epsilon_is_jax_privacys_within_a_thousandth_and_never_under_it(known: dict) -> None:
    steps = SampledRelease(
        noise_multiplier=known["noise_multiplier"],
        sampling_rate=known["bands"] * known["batch"] / known["examples"],
        steps=turns(0, known["steps"], known["bands"]),
        parameters=known["bands"],
    )
    charged = opinions([steps], known["delta"]).charged
    assert sampled_epsilon([(steps, 1)], known["delta"]) == pytest.approx(known["epsilon"], rel=1e-3)
    assert known["epsilon"] * (1 - 1e-6) <= charged <= 1.005 * known["epsilon"], "PRV's upper end is charged"


@pytest.mark.parametrize(("bands", "momentum", "steps"), [(1, 0.0, 5), (2, 0.0, 7), (3, 0.9, 9), (4, 0.5, 10)])
def test_brute_force_over_whose_steps_these_are_finds_no_larger_shift(bands: int, momentum: float, steps: int) -> None:
    """Every way of taking part in steps that are at least b apart, with gradients of either sign, all of norm 1."""
    first_column = coefficients(bands, momentum)
    whole = matrix(first_column, steps)
    worst = 0.0
    for chosen in itertools.product([-1, 0, 1], repeat=steps):
        own = np.flatnonzero(chosen)
        if len(own) > 1 and np.diff(own).min() < bands:
            continue
        worst = max(worst, float(np.linalg.norm(whole @ np.array(chosen, float))))
    limit = math.sqrt(turns(0, steps, bands)) * column_norm(first_column)
    assert worst <= limit
    assert worst > 0.85 * limit, "and it is not far below"


def test_the_root_times_itself_is_the_workload_and_every_width_is_as_stated() -> None:
    for momentum in (0.0, 0.3, 0.9, 0.999):
        whole = coefficients(50, momentum)
        assert np.allclose(np.convolve(whole, whole)[:50], workload(50, momentum), rtol=1e-12)
        for bands in BANDS:
            assert coefficients(bands, momentum) == whole[:bands]
            assert len(coefficients(bands, momentum)) == bands


@given(st.integers(1, 16), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_rounds_of_any_length_are_charged_together_for_the_most_turns_of_any_group(bands: int, each: list[int]) -> None:
    ends = np.cumsum([0, *each]).tolist()
    charged = sum(turns(first, end, bands) for first, end in itertools.pairwise(ends))
    groups = [sum(step % bands == group for step in range(ends[-1])) for group in range(bands)]
    assert charged == max(groups, default=0)


def fresh_noise(monkeypatch: pytest.MonkeyPatch, rows: npt.NDArray[np.int64]) -> None:
    """Puts these in the place of discrete Gaussian draws, one after the other."""
    left = iter(rows)
    monkeypatch.setattr(noise_stream, "discrete_gaussian", lambda sigma, size, entropy: next(left).astype(np.int32))


@pytest.mark.parametrize(("bands", "momentum"), [(2, 0.0), (5, 0.9), (16, 0.9)])
def test_the_rows_are_the_inverse_of_the_matrix_and_causal(
    bands: int, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through store and reopening in between; a bug that lets a row see a later draw, or an old one twice, is seen."""
    steps, width, unit = 40, 40, 1 << 20
    fresh_noise(monkeypatch, unit * np.eye(steps, width, dtype=np.int64))  # coordinate i: a single draw, at step i
    stream = begun(bands, momentum)
    rows = []
    for step in range(steps):
        noise = CorrelatedNoise(stream, width)
        rows.append(noise.next_row(os_entropy))
        stream = decode(encode(noise.stream()), NoiseStream)
        assert stream.taken == step + 1
    found = np.array(rows) / unit  # (t, i): how much of draw i is in row t
    assert np.allclose(found, np.linalg.inv(matrix(coefficients(bands, momentum), steps)), atol=1e-5)
    assert (np.triu(found, 1) == 0).all(), "no row has noise of a later step in it"
    assert (np.diag(found) == 1).all(), "every row has all of its own"


def begun(bands: int, momentum: float = 0.9, entropy: Entropy = os_entropy) -> NoiseStream:
    return NoiseStream.begin("run", BLOCKS, bands=bands, momentum=momentum, entropy=entropy)


def test_what_the_matrix_makes_of_the_rows_is_whole_noise_again() -> None:
    """C w = z but for roundings of at most a half: no row repeats another, and each has all of the variance."""
    width, steps, bands = 4000, 24, 6
    noise = CorrelatedNoise(begun(bands), width)
    rows = np.array([noise.next_row(os_entropy) for _ in range(steps)], np.float64)
    again = matrix(coefficients(bands, 0.9), steps) @ rows / noise_stream.NOISE_STEPS
    deviations = again.std(axis=1)
    assert np.abs(deviations - 1).max() < 6 / math.sqrt(2 * width)
    between = np.corrcoef(again) - np.eye(steps)
    assert np.abs(between).max() < 7 / math.sqrt(width), "a repeated draw would correlate by one"
    assert np.corrcoef(rows)[0, 1] < -0.5, "while rows themselves take back what was there before"


def test_two_runs_that_differ_in_one_unit_have_rows_that_differ_by_its_column_and_roundings() -> None:
    """The shift that ``NoiseScale.bound`` leaves room for, at its worst: gradients that are not on the grid's side."""
    from fedpeft.tuning import NoiseScale

    width, bands = 500, 16
    column = np.array(coefficients(bands, 0.9))
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=1.0, sampling_rate=1.0, bands=bands, momentum=0.9)
    # What the proof needs: the longest gradient, rounded, through the column, and all roundings against it.
    longest = scale.bound(width) + scale.grid * math.sqrt(width) / 2
    roundings = scale.grid * math.sqrt((bands - 1) * width)
    assert scale.spread * longest + roundings <= scale.spread * scale.l2_clip_norm
    draw = np.random.default_rng(1)
    gradient = draw.standard_normal(width)
    gradient = np.rint(gradient * scale.bound(width) / np.linalg.norm(gradient) / scale.grid).astype(np.int64)
    fresh = draw.integers(-(2**24), 2**24, (bands, width))
    released = list[npt.NDArray[np.int64]]()
    rows = {True: list[npt.NDArray[np.int64]](), False: list[npt.NDArray[np.int64]]()}
    shift = np.zeros((bands, width))
    for step in range(bands):
        means = {}
        for there, own in rows.items():
            behind = sum((c * row for c, row in zip(column[1:], reversed(own), strict=False)), start=np.zeros(width))
            means[there] = (gradient if there and step == 0 else 0) - np.rint(behind).astype(np.int64)
        shift[step] = means[True] - means[False]
        released.append(means[True] + fresh[step])
        for there, own in rows.items():
            own.append(released[-1] - (gradient if there and step == 0 else 0))
    moved = float(np.linalg.norm(shift)) * scale.grid
    assert moved <= scale.spread * scale.l2_clip_norm
    assert moved > 0.999 * scale.spread * scale.l2_clip_norm
    assert np.abs(shift - np.outer(column, gradient)).max() <= 1.0, "roundings, and nothing else"


def test_a_stream_tells_nobody_its_secrets_and_fits_no_other_adapter() -> None:
    noise = CorrelatedNoise(begun(4), 10)
    for _ in range(5):
        noise.next_row(os_entropy)
    stream = noise.stream()
    assert stream.key.hex() not in repr(stream)
    assert "rows" not in repr(stream)
    assert stream.mark == f"{stream.name}@5"
    assert stream.whole(10)
    assert not stream.whole(11)
    with pytest.raises(ValueError, match="last rows of noise of 11"):
        CorrelatedNoise(stream, 11)


def test_groups_are_of_one_key_alone_and_a_unit_stays_in_its_own() -> None:
    units = [place.to_bytes(4, "little") for place in range(4000)]
    one, same, other = (CorrelatedNoise(begun(8, entropy=seeded_entropy(seed, "groups")), 1) for seed in (0, 0, 1))
    groups = np.array([one.group_of(unit) for unit in units])
    assert np.array_equal(groups, [same.group_of(unit) for unit in units])
    assert np.bincount(groups, minlength=8).min() > 380, "even, but for chance"
    assert (groups == [other.group_of(unit) for unit in units]).mean() < 0.2
    before = groups[0]
    for _ in range(3):
        one.next_row(os_entropy)
    assert one.group == 3
    assert one.group_of(units[0]) == before
