"""Derived numbers, at the borders where they change."""

import pytest

from fedpeft.catalogue.lora import lora_tiers
from fedpeft.config import parse, resolved
from fedpeft.config.derived import invited_devices, value_bits, wanted_devices, with_head_start
from fedpeft.config.model import Lora, Rounds, SecureAggregation
from fedpeft.testing.runs import toy_run


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


MANY = toy_run("[rounds]\ncount = 4\n[train]\nbatch_size = 2", clients=3, labels=("a", "b", "c"))


@pytest.mark.parametrize(
    "override",
    [
        "rounds.count=4",
        "train.batch_size=3",
        "rounds.count=3",
        "adapter.relora={cycles=2}",
        "adapter.head=false",
        'aggregate.local=["head"]',
        'task={kind="causal-lm"}',
        'adapter.head_start="seed"',
        'privacy={unit="example", epsilon=8.0, delta=1e-5}',
    ],
)
def test_the_head_starts_from_class_means_where_a_batch_cannot_show_every_class(override: str) -> None:
    config = parse(MANY, source="t", overrides=[override], simulation=True)
    assert config.adapter.head_start == ("class-means" if override == "rounds.count=4" else "seed")


@pytest.mark.parametrize(
    ("overrides", "every"),
    [
        (["rounds.count=6"], 3),
        (["rounds.count=5"], 0),
        (["rounds.count=6", "train.batch_size=3"], 0),  # few classes: the demo's tweets would lose eight points
        (["rounds.count=6", 'adapter.head_start="class-means"'], 0),  # chosen, whatever the classes are
        (["rounds.count=6", "adapter.head_learning_rate=0.01"], 0),  # asks for a head that is trained
        (["rounds.count=6", "adapter.head_refresh=0"], 0),
        (["rounds.count=6", "adapter.head_refresh=4"], 4),
        (["rounds.count=6", 'adapter.head_start="class-means"', "adapter.head_refresh=2"], 2),
        (["rounds.count=6", 'privacy={unit="example", epsilon=8.0, delta=1e-5}'], 0),
        (["rounds.count=6", 'task={kind="causal-lm"}'], 0),
    ],
)
def test_class_means_are_measured_again_where_nobody_chose_and_there_are_many_classes(
    overrides: list[str], every: int
) -> None:
    config = parse(MANY, source="t", overrides=overrides, simulation=True)
    assert config.adapter.head_refresh == config.adapter.refresh_every == every
    assert parse(resolved(config), source="resolved.toml", simulation=True).adapter == config.adapter


def test_how_the_head_starts_waits_for_the_labels() -> None:
    config = parse(MANY.replace('labels = ["a", "b", "c"]', ""), source="t", simulation=True)
    assert config.adapter.head_start == "auto"
    known = config.model_copy(update={"task": config.task.model_copy(update={"labels": ("a", "b", "c")})})
    assert with_head_start(known).adapter.head_start == "class-means"


def test_a_head_that_is_not_measured_is_not_measured_again() -> None:
    asked = parse(MANY, source="t", overrides=["rounds.count=3", "adapter.head_refresh=2"], simulation=True)
    assert (asked.adapter.head_start, asked.adapter.head_refresh) == ("seed", 0)
    parse(resolved(asked), source="resolved.toml", simulation=True)
