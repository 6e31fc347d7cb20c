import math
import sys
from collections import Counter
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.config.model import Partition
from fedpeft.data import Records
from fedpeft.entropy import generator
from fedpeft.errors import DataInvalid, ResourceMissing
from fedpeft_sim.partition import client_name, partition

Synthetic = Literal["iid", "dirichlet", "shards"]
SYNTHETIC: tuple[Synthetic, ...] = ("iid", "dirichlet", "shards")


def records(n: int, classes: int = 3) -> Records:
    return Records.of([{"text": str(i), "label": f"c{i * classes // max(n, 1)}"} for i in range(n)])


def by_column(values: list[object]) -> Records:
    return Records.of([{"text": str(i), "ward": value} for i, value in enumerate(values)], name="f")


def numbers(part: Records) -> list[int]:
    return [int(str(row["text"])) for row in part]


@given(st.lists(st.sampled_from(["a", "b", "c", 7, "Ward D"]), min_size=1))
def test_each_value_of_a_column_is_a_client(values: list[object]) -> None:
    clients = partition(by_column(values), Partition(by="column", column="ward"), 0).clients
    assert {name: len(part) for name, part in clients.items()} == Counter(map(client_name, values))
    assert all(client_name(row["ward"]) == name for name, part in clients.items() for row in part)
    assert all(numbers(part) == sorted(numbers(part)) for part in clients.values())


@pytest.mark.parametrize("by", SYNTHETIC)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 60), clients=st.integers(1, 9), seed=st.integers(0, 2**63 - 1))
def test_every_record_goes_to_exactly_one_client_in_its_order(by: Synthetic, n: int, clients: int, seed: int) -> None:
    how = Partition(by=by, clients=min(clients, n), alpha=0.3)
    if by == "shards" and -(-n // -(-n // (2 * how.clients))) < how.clients:  # fewer shards than clients
        with pytest.raises(DataInvalid, match="enough records"):
            partition(records(n), how, seed)
        return
    found = partition(records(n), how, seed)
    assert sorted(i for part in found.clients.values() for i in numbers(part)) == list(range(n))
    assert all(numbers(part) == sorted(numbers(part)) for part in found.clients.values())
    assert set(found.left_out.values()) <= {0}
    assert len(found.clients) + len(found.left_out) == how.clients


@pytest.mark.parametrize("by", SYNTHETIC)
def test_the_same_seed_gives_the_same_clients_and_another_seed_others(by: Synthetic) -> None:
    how = Partition(by=by, clients=4)
    first, again, other = (partition(records(200), how, seed).clients for seed in (5, 5, 6))
    assert dict(first) == dict(again)
    assert dict(first) != dict(other)


@pytest.mark.parametrize("by", ["dirichlet", "shards"])
def test_the_seed_also_draws_who_gets_how_much_of_a_class(by: Synthetic) -> None:
    def mixes(seed: int) -> list[Counter[object]]:
        clients = partition(records(200), Partition(by=by, clients=4), seed).clients
        return [Counter(row["label"] for row in part) for part in clients.values()]

    assert len({str(mixes(seed)) for seed in range(4)}) > 1


def test_the_partition_is_the_same_on_every_machine() -> None:
    clients = partition(records(12), Partition(by="iid", clients=3), 0).clients
    assert {name: numbers(part) for name, part in clients.items()} == {
        "client-1": [3, 4, 5, 6],
        "client-2": [7, 8, 10, 11],
        "client-3": [0, 1, 2, 9],
    }


def test_iid_clients_have_one_size_and_every_class() -> None:
    clients = partition(records(300), Partition(by="iid", clients=10), 1).clients
    assert {len(part) for part in clients.values()} == {30}
    assert all(len({row["label"] for row in part}) == 3 for part in clients.values())


def test_a_small_alpha_skews_more_than_a_large_one() -> None:
    def largest_share(alpha: float) -> float:
        clients = partition(records(3000), Partition(by="dirichlet", clients=5, alpha=alpha), 0).clients
        shares = [max(Counter(row["label"] for row in part).values()) / len(part) for part in clients.values()]
        return sum(shares) / len(shares)

    assert largest_share(0.05) > 0.8
    assert largest_share(1000.0) < 0.4


def test_a_client_of_shards_sees_few_classes() -> None:
    clients = partition(records(1000, classes=10), Partition(by="shards", clients=10, shards_per_client=2), 0).clients
    assert all(len({row["label"] for row in part}) <= 2 for part in clients.values())
    assert {len(part) for part in clients.values()} == {100}


def test_another_column_than_the_label_can_be_skewed() -> None:
    rows = Records.of([{"text": str(i), "topic": i % 2} for i in range(100)])
    clients = partition(rows, Partition(by="shards", clients=2, shards_per_client=1, column="topic"), 0).clients
    assert [len({row["topic"] for row in part}) for part in clients.values()] == [1, 1]


def test_small_clients_are_left_out_and_reported() -> None:
    found = partition(
        by_column(["a"] * 5 + ["b"] * 2 + ["c"]), Partition(by="column", column="ward", min_examples=2), 0
    )
    assert list(found.clients) == ["a", "b"]
    assert found.left_out == {"c": 1}


def test_no_client_large_enough_is_refused() -> None:
    with pytest.raises(DataInvalid, match="min_examples=9"):
        partition(by_column(["a", "b"]), Partition(by="column", column="ward", min_examples=9), 0)


@pytest.mark.parametrize(
    ("value", "name"),
    [("St. Mary's (North)", "st-mary-s-north"), ("Zürich", "zurich"), (3, "3"), ("a" * 60, "a" * 40), ("--x--", "x")],
)
def test_a_client_name_is_letters_digits_and_hyphens(value: object, name: str) -> None:
    assert client_name(value) == name


@given(st.one_of(st.text(min_size=1).filter(str.strip), st.integers()))
def test_every_value_has_a_name_that_the_config_accepts(value: object) -> None:
    name = client_name(value)
    assert 0 < len(name) <= 40
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name[0] != "-"


def test_values_in_another_script_keep_apart() -> None:
    assert len(partition(by_column(["北京", "上海"]), Partition(by="column", column="ward"), 0).clients) == 2


def test_two_values_with_one_name_are_not_merged() -> None:
    with pytest.raises(DataInvalid, match=r"f:2: ward.*'Ward A' and 'ward-a'"):
        partition(by_column(["Ward A", "ward-a"]), Partition(by="column", column="ward"), 0)


@pytest.mark.parametrize("value", [None, math.nan, "", 0.5])
def test_a_row_without_a_client_is_named(value: object) -> None:
    with pytest.raises(DataInvalid, match="f:2: ward"):
        partition(by_column(["a", value]), Partition(by="column", column="ward"), 0)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataInvalid, match="'wrad'"):
        partition(by_column(["a"]), Partition(by="column", column="wrad"), 0)


@pytest.mark.parametrize("by", ["dirichlet", "shards"])
def test_a_skewed_split_without_labels_is_refused(by: Synthetic) -> None:
    with pytest.raises(DataInvalid, match=r"data\.partition\.column"):
        partition(by_column(["a", "b", "c"]), Partition(by=by, clients=2), 0)


@pytest.mark.parametrize("clients", [0, 4])
def test_a_number_of_clients_that_cannot_be_is_refused(clients: int) -> None:
    with pytest.raises(DataInvalid, match=f"clients={clients} <= 3 records"):
        partition(records(3), Partition(by="iid", clients=clients), 0)


def test_without_flwr_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(ResourceMissing, match=r"fedpeft\[demo\]"):
        partition(records(3), Partition(by="dirichlet", clients=2), 0)


@pytest.mark.parametrize(("count", "clients"), [(3, 3), (7, 2), (100, 7), (101, 6), (12, 1)])
def test_equal_shares_are_those_that_flowers_partitioner_cuts(count: int, clients: int) -> None:
    import datasets
    from flwr_datasets.partitioner import IidPartitioner

    order = generator(5, "partition order").permutation(count).tolist()
    flowers = IidPartitioner(num_partitions=clients)
    flowers.dataset = datasets.Dataset.from_dict({"row": order})
    found = partition(records(count), Partition(by="iid", clients=clients), 5).clients
    shares = [sorted(flowers.load_partition(i)["row"]) for i in range(clients)]
    assert [numbers(own) for own in found.values()] == shares


def test_equal_shares_need_none_of_flowers_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    assert len(partition(records(6), Partition(by="iid", clients=2), 0).clients) == 2
