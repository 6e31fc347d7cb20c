"""One person more or less moves the sum by at most C, whatever state the coordinator sends and however many notes.

As ``test_sensitivity``, with data sets that differ in one person: f(D) - f(D - p) for every person p, through the
product's own gradients, means, clip and grid, without noise.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedpeft.config.model import Adapter, BitFit, Dora, Lora
from fedpeft.data import EncodedDataset
from fedpeft.entropy import os_entropy
from fedpeft.methods import attach
from fedpeft.testing.models import tiny_bert
from fedpeft.tuning import NoiseScale, dp_sgd_mechanism
from fedpeft.tuning.dp_sgd_mechanism import noisy_sum
from fedpeft.tuning.per_example_gradients import GradientSource
from fedpeft.tuning.person_gradients import PersonGradients, people_of

sys.path.insert(0, str(Path(__file__).parent))
from hostile_state import hostile

pytestmark = pytest.mark.torch

CASES = {
    "lora both": Adapter(lora=Lora(rank=4, train="both")),
    "lora and bitfit": Adapter(lora=Lora(rank=4), bitfit=BitFit()),
    "dora": Adapter(dora=Dora(rank=4)),
}
NOISE = NoiseScale(l2_clip_norm=0.5, noise_multiplier=1.0, sampling_rate=1.0)
LENGTHS = (1, 64, 20, 3, 33, 2, 9, 5, 17, 30, 8, 12)
OWNERS = (1, 2, 2, 3, 2, 2, 1, 2, 4, 2, 3, 2)
"""Person 2 has most of the notes, of all lengths, so their leaving changes who is computed with whom."""


def notes(seed: int) -> EncodedDataset:
    draw = np.random.default_rng(seed)
    ids = tuple(draw.integers(1, 120, length).astype(np.int32) for length in LENGTHS)
    labels = draw.integers(0, 3, len(ids)).astype(np.int64)
    return EncodedDataset(input_ids=ids, labels=labels, truncated=0, owners=np.array(OWNERS, np.uint64))


def without(examples: EncodedDataset, person: int) -> EncodedDataset:
    owners, labels = examples.owners, examples.labels
    assert owners is not None
    assert isinstance(labels, np.ndarray)
    kept = np.flatnonzero(owners != person)
    ids = tuple(examples.input_ids[i] for i in kept)
    return EncodedDataset(input_ids=ids, labels=labels[kept], truncated=0, owners=owners[kept])


def whole_sum(union, trained, examples: EncodedDataset, per_person: int) -> np.ndarray:
    blocks = frozenset(block.block_id for block in union.spec.blocks if block.trainable)
    size = sum(parameter.numel() for parameter in trained.values())
    source = GradientSource(union, blocks, trained, examples, most=4)
    people = people_of(examples.owners)
    made = PersonGradients(source.of, people, most=per_person, parameters=size, entropy=os_entropy)
    return noisy_sum(made.gradients, len(made), NOISE, size, os_entropy)


def moves(case: str, scale: float, monkeypatch: pytest.MonkeyPatch, per_person: int = 64) -> list[float]:
    monkeypatch.setattr(dp_sgd_mechanism, "discrete_gaussian", lambda sigma, size, entropy: np.zeros(size))
    union, examples = attach(tiny_bert(), CASES[case], seed=0), notes(1)
    trained = hostile(union, scale)
    whole = whole_sum(union, trained, examples, per_person)
    return [
        float(np.linalg.norm(whole - whole_sum(union, trained, without(examples, person), per_person)))
        / NOISE.l2_clip_norm
        for person in sorted(set(OWNERS))
    ]


@pytest.mark.drawn(1, each=("scale",), always=lambda case, scale: (case, scale) == ("lora both", 1e3))
@pytest.mark.parametrize(
    ("case", "scale"),
    [(case, scale) for case in CASES for scale in (1.0, 1e3, 1e18)],
)
def test_one_person_more_or_less_moves_the_sum_by_at_most_the_clip_norm(
    case: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = moves(case, scale, monkeypatch)
    assert max(found) <= 1 + 1e-9
    if scale == 1.0:
        assert max(found) > 0.9, "a state at which clipping is at work"


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_step_is_the_sum_of_what_each_person_gives_alone_to_the_last_bit(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd_mechanism, "discrete_gaussian", lambda sigma, size, entropy: np.zeros(size))
    union, examples = attach(tiny_bert(), CASES["lora both"], seed=0), notes(1)
    trained = hostile(union, scale)
    alone = np.zeros(sum(parameter.numel() for parameter in trained.values()))
    for person in set(OWNERS):
        only = examples
        for other in set(OWNERS) - {person}:
            only = without(only, other)
        alone += np.rint(whole_sum(union, trained, only, 64) / NOISE.grid)
    whole = np.rint(whole_sum(union, trained, examples, 64) / NOISE.grid)
    assert np.array_equal(whole, alone)


def test_clipping_each_example_instead_of_the_mean_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded bug: a person counts once for each example."""

    def each(self, taken):
        return (part for _, part in self._of(np.concatenate([self._people[i] for i in taken])))

    monkeypatch.setattr(PersonGradients, "gradients", each)
    assert max(moves("lora both", 1.0, monkeypatch)) > 1.5
