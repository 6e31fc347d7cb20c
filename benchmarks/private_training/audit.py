"""The audit of `benchmarks/privacy.py`: the correct build below its claim, every seeded bug above it.

The claims lie below saturation, so that each audit could refute them. The bugs are seeded here by replacing one
function of the product; tests/privacy/test_audit.py holds the same with other numbers.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from fedpeft.entropy import Entropy, os_entropy, seeded_entropy
from fedpeft.ids import BlockId
from fedpeft.privacy import (
    AuditResult,
    CorrelatedNoise,
    NoiseStream,
    audit,
    audit_clients,
    coefficients,
    discrete_gaussian,
    noise_stream,
)
from fedpeft.tuning import NoiseScale, canaries
from fedpeft.tuning import dp_sgd_mechanism as release
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.canaries import audit_examples, audit_people
from fedpeft.tuning.person_gradients import PersonGradients

DELTA = 1e-5
PER_PERSON = 16

Replacement = tuple[object, str, object]


def audits(count: int) -> dict[str, object]:
    """All units, correct and with each bug; ``audit_ok`` if only the bugs are refuted, and all of them.

    Args:
        count: canaries.
    """
    bugs = ("none", "noise / n", "no noise", "no clip")
    rows = {
        "clients": {bug: _clients(count, bug) for bug in (*bugs, "clip a block")},
        "examples": {bug: _examples(count, bug) for bug in (*bugs, "clip a tensor")},
        "people": {bug: _people(count, bug) for bug in (*bugs, "clip an example", "on 32 devices")},
        "correlated": {bug: _correlated(count, bug) for bug in ("none", "no noise", "everybody in every step")},
    }
    table = {
        unit: {
            bug: {"claimed": one.claimed, "bound": one.bound, "saturation": one.most, "refuted": one.refuted}
            for bug, one in found.items()
        }
        for unit, found in rows.items()
    }
    checked = {
        "cap not applied": _refused(count, [(PersonGradients, "_chosen", lambda self, own: own)]),
        "a person counted twice": _refused(
            count, [(release, "poisson_sample", lambda number, rate, entropy: np.arange(number) // 2)]
        ),
        "none": not _refused(count, []),
        "matrix not causal": _causal([]) and not _causal([(CorrelatedNoise, "next_row", _looking_ahead)]),
        "noise that repeats over steps": not _causal([(noise_stream, "discrete_gaussian", _always_the_first)]),
    }
    repeated = _repeats(lambda: seeded_entropy(0, "noise")) and not _repeats(lambda: os_entropy)
    right = all(one.refuted == (bug != "none") for found in rows.values() for bug, one in found.items())
    could = all(one.claimed < one.most for found in rows.values() for one in found.values())
    print(json.dumps(table), flush=True)
    return {
        "audit_ok": right and could and repeated and all(checked.values()),
        "audit": table,
        "audit_self_check": checked,
        "audit_canaries": count,
    }


def _clients(count: int, bug: str) -> AuditResult:
    seeded: list[Replacement] = []
    divide = {"noise / n": np.sqrt(count), "no noise": 1e18}.get(bug, 1.0)
    if bug != "none":
        seeded.append((audit, "noisy_words", _words(divide)))
    if bug == "no clip":
        seeded.append((audit, "clip", _tenfold))
    if bug == "clip a block":
        seeded += [(audit, "clip", _by_block), (audit, "BLOCKS", tuple(f"canary.{i}" for i in range(64)))]
    with _replaced(seeded):
        return audit_clients(
            noise_multiplier=4.0, l2_clip_norm=1.0, rounds=2, canaries=count, delta=DELTA, entropy=os_entropy
        )


def _examples(count: int, bug: str) -> AuditResult:
    real_noise, real_clip = release.discrete_gaussian, release.clipped_sum
    seeded: dict[str, list[Replacement]] = {
        "noise / n": [(release, "discrete_gaussian", lambda s, n, e: np.rint(real_noise(s, n, e) / np.sqrt(count)))],
        "no noise": [(release, "discrete_gaussian", lambda s, n, e: np.zeros(n))],
        "no clip": [(release, "clipped_sum", lambda parts, bound, grid: real_clip(parts, 1e9, grid))],
        "clip a tensor": [
            (canaries, "TENSORS", 64),
            (
                release,
                "clipped_sum",
                lambda parts, bound, grid: torch.cat([real_clip([one], bound, grid) for one in parts]),
            ),
        ],
    }
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=4.0, sampling_rate=1.0)
    with _replaced(seeded.get(bug, [])):
        return audit_examples(scale, steps=2, canaries=count, delta=DELTA, entropy=os_entropy)


def _people(count: int, bug: str) -> AuditResult:
    real_noise, real_clip = release.discrete_gaussian, release.clipped_sum
    seeded: dict[str, list[Replacement]] = {
        "noise / n": [(release, "discrete_gaussian", lambda s, n, e: np.rint(real_noise(s, n, e) / np.sqrt(count)))],
        "no noise": [(release, "discrete_gaussian", lambda s, n, e: np.zeros(n))],
        "no clip": [(release, "clipped_sum", lambda parts, bound, grid: real_clip(parts, 1e9, grid))],
        "clip an example": [(PersonGradients, "gradients", _example_by_example)],
    }
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=4.0, sampling_rate=1.0)

    def attacked(steps: int) -> AuditResult:
        return audit_people(
            scale, steps=steps, canaries=count, examples_per_person=PER_PERSON, delta=DELTA, entropy=os_entropy
        )

    if bug == "on 32 devices":  # that share a person and add up what they release, each claiming its own two steps
        return replace(attacked(64), claimed=attacked(2).claimed)
    with _replaced(seeded.get(bug, [])):
        return attacked(2)


def _correlated(count: int, bug: str) -> AuditResult:
    """Of each canary one turn in twelve steps; the attacker knows the matrix, and whose turn each step is."""
    seeded: dict[str, list[Replacement]] = {
        "no noise": [(noise_stream, "discrete_gaussian", lambda s, n, e: np.zeros(n, np.int32))],
        "everybody in every step": [(release.Turns, "members", lambda self: np.arange(count))],
    }
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=4.0, sampling_rate=1.0, bands=12, momentum=0.9)
    with _replaced(seeded.get(bug, [])):
        return audit_examples(scale, steps=12, canaries=count, delta=DELTA, entropy=os_entropy)


def _causal(seeded: list[Replacement], steps: int = 20, size: int = 2000) -> bool:
    """Whether C applied to the rows of noise gives draws that are new in every step."""
    stream = NoiseStream.begin("audit", [BlockId("all")], bands=6, momentum=0.9, entropy=os_entropy)
    with _replaced(seeded):
        noise = CorrelatedNoise(stream, size)
        rows = np.array([noise.next_row(os_entropy) for _ in range(steps)], np.float64)
    column = coefficients(6, 0.9)
    fresh = np.array([sum(c * rows[step - k] for k, c in enumerate(column[: step + 1])) for step in range(steps)])
    return bool(np.abs(np.corrcoef(fresh) - np.eye(steps)).max() < 7 / np.sqrt(size))


_real_row, _real_draw = CorrelatedNoise.next_row, discrete_gaussian
_ahead: dict[int, np.ndarray] = {}
_first: list[np.ndarray] = []


def _looking_ahead(noise: CorrelatedNoise, entropy: Entropy) -> np.ndarray:
    """The bug: a row holds half of the row that comes after it."""
    now = _ahead.pop(id(noise), None)
    now = _real_row(noise, entropy) if now is None else now
    _ahead[id(noise)] = _real_row(noise, entropy)
    return now + _ahead[id(noise)] // 2


def _always_the_first(sigma: float, size: int, entropy: Entropy) -> np.ndarray:
    """The bug: every step gets the draws of the first one."""
    if not _first:
        _first.append(_real_draw(sigma, size, entropy))
    return _first[0]


def _example_by_example(people: PersonGradients, taken: Indices) -> Iterator[list[Tensor]]:
    """The bug: each of somebody's examples is clipped, so that they move the sum by as many C."""
    chosen = [people._chosen(people._people[int(person)]) for person in taken]
    return (part for _, part in people._of(np.concatenate(chosen)))


def _refused(count: int, seeded: list[Replacement]) -> bool:
    """Whether the self-check of every step refuses a bug that few canaries would not show."""
    scale = NoiseScale(l2_clip_norm=1.0, noise_multiplier=4.0, sampling_rate=1.0)
    with _replaced(seeded):
        try:
            audit_people(
                scale, steps=1, canaries=count, examples_per_person=PER_PERSON, delta=DELTA, entropy=os_entropy
            )
        except TypeError:
            return True
    return False


@contextmanager
def _replaced(seeded: list[Replacement]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, value in seeded:
            stack.enter_context(patch.object(module, name, value))
        yield


def _words(divide: float) -> Callable[..., object]:
    """``noisy_words`` whose noise is divided, and which accepts contributions of any length."""

    def words(vectors: dict, mechanism: object, entropy: Entropy) -> dict:
        step, found = mechanism.terms.step, {}  # type: ignore[attr-defined]
        for key, vector in vectors.items():
            noise = discrete_gaussian(mechanism.share_sigma, len(vector), entropy)  # type: ignore[attr-defined]
            whole = np.rint(vector.astype(np.float64) / step) + np.rint(noise / divide)
            found[key] = whole.astype(np.int64).astype("<u4")
        return found

    return words


class _Vectors:
    def __init__(self, vectors: dict) -> None:
        self.vectors = vectors


def _tenfold(vectors: dict, **_: object) -> _Vectors:
    """No clip: canaries ten times as long as the norm, which the ring still holds."""
    return _Vectors({key: vector / np.float32(audit.OVER_NORM / 10) for key, vector in vectors.items()})


def _by_block(vectors: dict, *, l2_clip_norm: float, allowance: float) -> _Vectors:
    from fedpeft.privacy import clip

    each = {key: clip({key: v}, l2_clip_norm=l2_clip_norm, allowance=allowance) for key, v in vectors.items()}
    return _Vectors({key: one.vectors[key] for key, one in each.items()})


def _repeats(entropy: Callable[[], Entropy]) -> bool:
    """The bug "repeated seed": whether two draws of noise are the same."""
    first, second = (discrete_gaussian(1e5, 50, entropy()) for _ in range(2))
    return bool((first == second).all())
