"""The audit finds nothing in the correct build, and every bug that is seeded here.

The noise is the operating system's. A correct build is refuted once in 20 by definition, at its exact epsilon; here
the claim is so far above what these attacks reach that it is once in 10^6.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedpeft.entropy import Entropy, os_entropy, seeded_entropy
from fedpeft.privacy import AuditResult, audit, audit_clients
from fedpeft.privacy.audit import lower_bound, saturation, verdict

CANARIES = 240


def clients(rounds: int = 1, entropy: Entropy = os_entropy) -> AuditResult:
    """Claims epsilon 1.1 in one round."""
    return audit_clients(
        noise_multiplier=3.5, l2_clip_norm=0.7, rounds=rounds, canaries=CANARIES, delta=1e-5, entropy=entropy
    )


def examples(rate: float = 1.0, steps: int = 1, entropy: Entropy = os_entropy) -> AuditResult:
    from fedpeft.tuning import NoiseScale
    from fedpeft.tuning.canaries import audit_examples

    noise = NoiseScale(l2_clip_norm=0.7, noise_multiplier=3.5, sampling_rate=rate)
    return audit_examples(noise, steps=steps, canaries=CANARIES, delta=1e-5, entropy=entropy)


def test_client_noise_is_not_refuted() -> None:
    result = clients()
    assert not result.refuted, result
    assert result.claimed < result.most


def unclipped(vectors: dict, **_: object) -> object:
    class Whole:
        def __init__(self, vectors: dict) -> None:
            self.vectors = {key: vector / np.float32(audit.OVER_NORM / 10) for key, vector in vectors.items()}

    return Whole(vectors)


def clipped_by_block(vectors: dict, *, l2_clip_norm: float, allowance: float) -> object:
    parts = {
        key: audit_clip({key: vector}, l2_clip_norm=l2_clip_norm, allowance=allowance).vectors[key]
        for key, vector in vectors.items()
    }

    class Clipped:
        vectors = parts

    return Clipped()


audit_clip = audit.clip


def seeded_noise(divide: float) -> Callable:
    """``noisy_words`` whose noise is divided, and which accepts contributions of any length."""

    def words(vectors, mechanism, entropy):
        from fedpeft.privacy.discrete_gaussian import discrete_gaussian

        step, found = mechanism.terms.step, {}
        for key, vector in vectors.items():
            noise = discrete_gaussian(mechanism.share_sigma, len(vector), entropy)
            whole = np.rint(vector.astype(np.float64) / step) + np.rint(noise / divide)
            found[key] = whole.astype(np.int64).astype("<u4")
        return found

    return words


@pytest.mark.parametrize("bug", ["noise / n", "no noise", "no clip", "a clip a block"])
def test_each_seeded_bug_of_the_secure_sums_noise_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    divide = {"noise / n": np.sqrt(CANARIES), "no noise": 1e18}.get(bug, 1.0)
    monkeypatch.setattr(audit, "noisy_words", seeded_noise(divide))
    if bug == "no clip":
        monkeypatch.setattr(audit, "clip", unclipped)
    if bug == "a clip a block":
        monkeypatch.setattr(audit, "clip", clipped_by_block)
        monkeypatch.setattr(audit, "BLOCKS", tuple(f"canary.{i}" for i in range(64)))
    result = clients()
    assert result.refuted, result


@pytest.mark.torch
def test_the_steps_of_dp_sgd_are_not_refuted() -> None:
    assert not examples().refuted
    assert not examples(rate=0.25, steps=8).refuted


@pytest.mark.torch
@pytest.mark.parametrize("bug", ["noise / n", "no noise", "no clip", "a clip a tensor", "the sample is known"])
def test_each_seeded_bug_of_dp_sgd_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.tuning import canaries, dp_sgd_mechanism

    real_noise, real_clip = dp_sgd_mechanism.discrete_gaussian, dp_sgd_mechanism.clipped_sum
    rate, steps = 1.0, 1
    match bug:
        case "noise / n":
            monkeypatch.setattr(
                dp_sgd_mechanism, "discrete_gaussian", lambda s, n, e: np.rint(real_noise(s, n, e) / np.sqrt(CANARIES))
            )
        case "no noise":
            monkeypatch.setattr(dp_sgd_mechanism, "discrete_gaussian", lambda s, n, e: np.zeros(n))
        case "no clip":
            monkeypatch.setattr(dp_sgd_mechanism, "clipped_sum", lambda parts, bound, grid: real_clip(parts, 1e9, grid))
        case "a clip a tensor":
            monkeypatch.setattr(canaries, "TENSORS", 64)
            monkeypatch.setattr(
                dp_sgd_mechanism,
                "clipped_sum",
                lambda parts, bound, grid: torch.cat([real_clip([part], bound, grid) for part in parts]),
            )
        case "the sample is known":  # every example in every step, charged as if it were one in fifty
            monkeypatch.setattr(dp_sgd_mechanism, "poisson_sample", lambda count, rate, entropy: np.arange(count))
            rate, steps = 0.02, 40
    result = examples(rate, steps)
    assert result.refuted, result


def test_noise_that_repeats_is_caught_by_comparing_two_runs() -> None:
    """Seeded bug "repeated seed": the audit of one run cannot see it, two sums of the same entropy can."""
    from fedpeft.privacy import discrete_gaussian

    same = [discrete_gaussian(1e5, 50, seeded_entropy(0, "noise")) for _ in range(2)]
    fresh = [discrete_gaussian(1e5, 50, os_entropy) for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (fresh[0] != fresh[1]).any()


def test_more_right_guesses_give_a_larger_bound_and_canaries_set_its_limit() -> None:
    bounds = [lower_bound(200, 200, right, delta=1e-5, failure=0.05) for right in (100, 130, 160, 200)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.0
    assert saturation(100, 1e-5) < saturation(1000, 1e-5) < 6.0


def test_a_large_delta_allows_more() -> None:
    small, large = (lower_bound(200, 200, 180, delta=delta, failure=0.05) for delta in (1e-7, 1e-3))
    assert large < small


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.02)])
def test_the_bound_covers_a_mechanism_of_known_epsilon_and_is_not_trivial(epsilon: float, delta: float) -> None:
    """Randomized response, which gives a canary away altogether with probability delta: exactly (epsilon, delta)-DP.

    Through ``verdict``, choice of threshold included. A bound above epsilon may come up once in 20.
    """
    draw = np.random.Generator(np.random.Philox(int(100 * epsilon + 1e4 * delta)))
    trials, canaries, bounds = 80, 100, []
    for _ in range(trials):
        present = draw.random(canaries) < 0.5
        truthful = draw.random(canaries) < np.exp(epsilon) / (1 + np.exp(epsilon))
        known = draw.random(canaries) < delta
        said = np.where(truthful | known, present, ~present)
        scores = np.where(said, 1.0, -1.0) * np.where(known, 2.0, 1.0)
        bounds.append(verdict(scores, present, claimed=epsilon, delta=delta, releases=1).bound)
    allowed = 0.05 * trials + 3 * np.sqrt(0.05 * 0.95 * trials)
    assert np.sum(np.array(bounds) > epsilon) <= allowed
    if delta == 0:
        assert np.median(bounds) > 0.3 * epsilon
    else:  # 2 m delta is above any confidence: the theorem promises nothing, and nothing is claimed
        assert np.max(bounds) <= epsilon


def test_the_chance_is_that_of_the_papers_theorem() -> None:
    """Steinke, Nasr and Jagielski 2023, Theorem 5.2 with the maximum of its appendix D, from scipy's binomial."""
    from scipy.stats import binom

    for canaries, guesses, right, epsilon, delta in (
        (100, 100, 80, 1.0, 1e-5),
        (500, 50, 45, 2.0, 1e-4),
        (1000, 20, 20, 3.0, 1e-6),
        (40, 10, 0, 0.5, 1e-3),
    ):
        correct = np.exp(epsilon) / (1 + np.exp(epsilon))
        tail = binom.sf(right - 1, guesses, correct)  # P[Binomial >= right]
        # P[right - i <= Binomial < right] / i, at its largest
        shares = [
            (binom.cdf(right - 1, guesses, correct) - binom.cdf(right - i - 1, guesses, correct)) / i
            for i in range(1, right + 1)
        ]
        expected = min(1.0, tail + 2 * canaries * delta * max(shares, default=0.0))
        assert audit._chance(canaries, guesses, right, epsilon, delta) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_quick_audit_of_the_benchmark_could_refute_its_claims() -> None:
    """A claim above saturation cannot be refuted, whatever the build does."""
    from fedpeft.privacy import SampledRelease, sampled_epsilon

    z = 4.0  # benchmarks/private_training/audit.py
    client = audit_clients(noise_multiplier=z, l2_clip_norm=1.0, rounds=2, canaries=200, delta=1e-5, entropy=os_entropy)
    assert client.claimed < 0.7 * client.most
    steps = SampledRelease(noise_multiplier=1.0, sampling_rate=0.05, steps=30, parameters=800)
    assert sampled_epsilon([(steps, 1)], 1e-5) < 0.95 * client.most


def people(steps: int = 1, rate: float = 1.0) -> AuditResult:
    from fedpeft.tuning import NoiseScale
    from fedpeft.tuning.canaries import audit_people

    noise = NoiseScale(l2_clip_norm=0.7, noise_multiplier=3.5, sampling_rate=rate)
    return audit_people(noise, steps=steps, canaries=CANARIES, examples_per_person=16, delta=1e-5, entropy=os_entropy)


@pytest.mark.torch
def test_steps_over_people_are_not_refuted_though_each_has_more_examples_than_a_step_looks_at() -> None:
    assert not people().refuted
    assert not people(rate=0.25, steps=2).refuted


@pytest.mark.torch
@pytest.mark.parametrize("bug", ["no noise", "no clip", "a clip an example"])
def test_each_seeded_bug_of_people_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.tuning import dp_sgd_mechanism
    from fedpeft.tuning.person_gradients import PersonGradients

    real_clip = dp_sgd_mechanism.clipped_sum
    match bug:
        case "no noise":
            monkeypatch.setattr(dp_sgd_mechanism, "discrete_gaussian", lambda s, n, e: np.zeros(n))
        case "no clip":
            monkeypatch.setattr(dp_sgd_mechanism, "clipped_sum", lambda parts, bound, grid: real_clip(parts, 1e9, grid))
        case "a clip an example":

            def each(self: PersonGradients, taken: np.ndarray) -> object:
                chosen = [self._chosen(self._people[int(person)]) for person in taken]
                return (part for _, part in self._of(np.concatenate(chosen)))

            monkeypatch.setattr(PersonGradients, "gradients", each)
    result = people()
    assert result.refuted, result


def correlated(steps: int = 12, rate: float = 1.0, *, of_people: bool = False) -> AuditResult:
    """One turn of each canary in twelve steps: claims epsilon 1.1."""
    from fedpeft.tuning import NoiseScale
    from fedpeft.tuning.canaries import audit_examples, audit_people

    noise = NoiseScale(l2_clip_norm=0.7, noise_multiplier=3.5, sampling_rate=rate, bands=12, momentum=0.9)
    if of_people:
        return audit_people(
            noise, steps=steps, canaries=CANARIES, examples_per_person=3, delta=1e-5, entropy=os_entropy
        )
    return audit_examples(noise, steps=steps, canaries=CANARIES, delta=1e-5, entropy=os_entropy)


@pytest.mark.torch
def test_correlated_steps_are_not_refuted_by_who_knows_the_matrix_and_whose_turn_it_is() -> None:
    assert not correlated().refuted
    assert not correlated(rate=0.25, steps=30).refuted
    assert not correlated(of_people=True).refuted
    assert correlated().claimed < correlated().most


@pytest.mark.torch
@pytest.mark.parametrize("bug", ["everybody in every step", "no fresh noise"])
def test_each_seeded_bug_of_correlated_noise_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is not causal, its norm left out and draws that repeat: tests/privacy/test_correlated*.py."""
    from fedpeft.privacy import noise_stream
    from fedpeft.tuning import dp_sgd_mechanism

    match bug:
        case "everybody in every step":
            monkeypatch.setattr(dp_sgd_mechanism.Turns, "members", lambda self: np.arange(CANARIES))
        case "no fresh noise":
            monkeypatch.setattr(noise_stream, "discrete_gaussian", lambda s, n, e: np.zeros(n, np.int32))
    result = correlated()
    assert result.refuted, result
