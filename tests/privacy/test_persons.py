"""People as the unit of DP-SGD: whose examples are whose, what a step looks at, and bugs seeded."""

import numpy as np
import pytest
import torch

from fedpeft.config.model import Adapter, BitFit, Lora
from fedpeft.data import EncodedDataset
from fedpeft.entropy import os_entropy, seeded_entropy
from fedpeft.errors import DataInvalid
from fedpeft.methods import attach
from fedpeft.testing.models import class_examples, tiny_bert
from fedpeft.tuning import LocalPlan, NoiseScale, train_privately
from fedpeft.tuning.person_gradients import PersonGradients, people_of

pytestmark = pytest.mark.torch

NOISE = NoiseScale(l2_clip_norm=0.5, noise_multiplier=1.0, sampling_rate=0.5)


def owned(examples: EncodedDataset, owners: list[int]) -> EncodedDataset:
    return EncodedDataset(
        input_ids=examples.input_ids, labels=examples.labels, truncated=0, owners=np.array(owners, np.uint64)
    )


def trained(examples: EncodedDataset, **how: object) -> np.ndarray:
    """What three steps on these leave."""
    union = attach(tiny_bert(), Adapter(lora=Lora(rank=4, train="both"), bitfit=BitFit()), seed=0)
    blocks = [block.block_id for block in union.spec.blocks if block.trainable]
    plan = LocalPlan(
        steps=3,
        batch_size=4,
        optimizer="sgd",
        learning_rates=dict.fromkeys(blocks, 0.5),
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    train_privately(union, examples, plan, NOISE, entropy=seeded_entropy(3, "people"), **how)  # type: ignore[arg-type]
    return np.concatenate(list(union.extract(blocks).values()))


def test_people_of_one_example_each_are_examples_bit_for_bit() -> None:
    examples = class_examples(14)
    each = owned(examples, [5, 1, 9, 2, 77, 3, 4, 6, 8, 7, 10, 11, 12, 13])
    assert np.array_equal(trained(examples), trained(each, examples_per_person=3))
    together = owned(examples, [5, 5, 5, 2, 77, 3, 4, 6, 8, 7, 10, 11, 12, 13])
    assert not np.array_equal(trained(examples), trained(together, examples_per_person=3))


def test_whose_an_example_is_is_said_once_and_nobodys_are_left_out() -> None:
    assert [own.tolist() for own in people_of(np.array([4, 0, 9, 4, 9, 9, 0, 1], np.uint64))] == [
        [0, 3],
        [2, 4, 5],
        [7],
    ]
    assert people_of(None) == ()
    assert people_of(np.zeros(3, np.uint64)) == ()


def test_data_that_names_no_people_trains_on_noise_alone_and_never_by_examples() -> None:
    examples = class_examples(6)
    nobody = trained(examples, examples_per_person=2, expected_batch=4.0)
    assert np.array_equal(nobody, trained(owned(examples, [0] * 6), examples_per_person=2, expected_batch=4.0))
    with pytest.raises(DataInvalid, match="at least one person"):
        trained(examples, examples_per_person=2)


def rows(of: dict[int, float]) -> object:
    """A source of gradients: example i has of[i] times (1, 0, ...), in two parts."""
    seen: list[int] = []

    def gradients(indices):
        for some in np.array_split(np.sort(indices), 2):
            seen.extend(some.tolist())
            if len(some):
                yield some, [torch.tensor([[of[int(i)], 0.0] for i in some]), torch.ones(len(some), 1)]

    return gradients, seen


def test_a_person_s_gradient_is_the_mean_over_at_most_so_many_of_their_examples() -> None:
    source, seen = rows({0: 1.0, 1: 3.0, 2: 8.0, 3: 5.0, 4: 5.0, 5: 5.0, 6: 5.0})
    people = (np.array([0, 1]), np.array([2]), np.array([3, 4, 5, 6]))
    made = PersonGradients(source, people, most=2, parameters=3, entropy=os_entropy)
    found = [row for part in made.gradients(np.array([0, 1, 2])) for row in torch.cat(part, 1).tolist()]
    assert sorted(found) == [[2.0, 0.0, 1.0], [5.0, 0.0, 1.0], [8.0, 0.0, 1.0]]
    assert len(seen) == 5
    assert len({*seen} & {3, 4, 5, 6}) == 2


def test_every_example_of_a_person_has_its_turn() -> None:
    source, seen = rows(dict.fromkeys(range(6), 1.0))
    made = PersonGradients(source, (np.arange(6),), most=2, parameters=3, entropy=os_entropy)
    for _ in range(60):  # one is never drawn in 60 steps with probability (2/3)^60 = 3e-11
        list(made.gradients(np.array([0])))
    assert set(seen) == set(range(6))


def test_an_example_that_is_not_finite_counts_as_zero_and_its_neighbours_stay() -> None:
    source, _ = rows({0: float("nan"), 1: 4.0, 2: 1.0})
    made = PersonGradients(source, (np.array([0, 1]), np.array([2])), most=2, parameters=3, entropy=os_entropy)
    found = [row for part in made.gradients(np.array([0, 1])) for row in torch.cat(part, 1).tolist()]
    assert sorted(found) == [[1.0, 0.0, 1.0], [2.0, 0.0, 0.5]]


def test_few_people_are_summed_at_a_time_and_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedpeft.tuning import person_gradients

    examples = class_examples(12)
    owners = [1, 1, 2, 3, 2, 4, 5, 1, 6, 6, 5, 7]
    whole = trained(owned(examples, owners), examples_per_person=4)
    monkeypatch.setattr(person_gradients, "SUMS_BYTES", 1)
    assert np.array_equal(whole, trained(owned(examples, owners), examples_per_person=4))


@pytest.mark.parametrize("bug", ["a person counted twice", "a cap not applied", "an example of two people"])
def test_each_seeded_bug_is_caught_before_anything_is_summed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, seen = rows(dict.fromkeys(range(6), 1.0))
    people, taken = (np.array([0, 1, 2]), np.array([3, 4])), np.array([0, 1])
    match bug:
        case "a person counted twice":
            taken = np.array([0, 1, 1])
        case "a cap not applied":
            monkeypatch.setattr(PersonGradients, "_chosen", lambda self, own: own)
        case "an example of two people":
            people = (np.array([0, 1, 2]), np.array([2, 3]))
    with pytest.raises(TypeError):
        list(PersonGradients(source, people, most=2, parameters=3, entropy=os_entropy).gradients(taken))
    assert seen == []
