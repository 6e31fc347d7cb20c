"""One data set -> clients: by a column (natural clients), or IID, Dirichlet or shards.

The three synthetic splits are Flower's own (flwr-datasets; McMahan 2017 for shards, Yurochkin 2019 for
Dirichlet), so that results compare with other people's. They only ever see row numbers and labels.

Guarantees:
    every record goes to exactly one client;
    a client's records keep the order of the data set;
    the same records, partition and seed give the same clients.
"""

import hashlib
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from fedpeft.config.model import Partition
from fedpeft.data import Records
from fedpeft.data.people import Owners
from fedpeft.data.records import ProblemLog
from fedpeft.data.targets import label_name, label_set, number_of
from fedpeft.entropy import derive_seed, generator
from fedpeft.errors import ConfigInvalid, DataInvalid, Problem, ResourceMissing

__all__ = ["Partitioned", "client_name", "partition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioned:
    """The clients of a simulation.

    Args:
        clients: name -> records, in name order.
        left_out: name -> number of examples, of clients with fewer than ``min_examples``: for the log.
        records: the data set without the rows of the clients in ``without``.
    """

    clients: Mapping[str, Records]
    left_out: Mapping[str, int]
    records: Records


def partition(records: Records, how: Partition, seed: int, *, owners: Owners | None = None) -> Partitioned:
    """Split a data set into clients.

    Args:
        records: the whole data set.
        how: ``data.partition`` of the run.
        seed: the run's.
        owners: whose each record is, where nobody's may lie with two clients: equal shares are then of people.

    Returns:
        At least one client.

    Raises:
        DataInvalid: the column is missing or empty in a row, two of its values give one client name, there
            are fewer records than clients, no client has enough examples, or somebody's lie with two.
        ConfigInvalid: ``without`` names a client that there is not.
        ResourceMissing: a synthetic split without flwr-datasets installed.
    """
    if how.by == "column":
        groups = _by_column(records, how.column)
    elif owners is not None and how.by == "iid":
        groups = _whole_people(records, how, seed, owners)
    else:
        groups = _synthetic(records, how, seed)
    if owners is not None:
        _expect_apart(groups, owners, how)
    if sorted(i for rows in groups.values() for i in rows) != list(range(len(records))):
        raise DataInvalid(f"Expected every record at one client, found others with {how.by}; use a larger alpha.")
    if how.without:
        _expect_clients(how.without, groups)
        groups = {name: rows for name, rows in groups.items() if name not in how.without}
    left_out = {name: len(groups[name]) for name in sorted(groups) if len(groups[name]) < how.min_examples}
    clients = {name: records.select(sorted(groups[name])) for name in sorted(groups) if name not in left_out}
    if not clients:
        raise DataInvalid(
            f"Expected a client with at least min_examples={how.min_examples}, found {len(left_out)} smaller ones; "
            "lower data.partition.min_examples."
        )
    kept = records.select(sorted(row for rows in groups.values() for row in rows)) if how.without else records
    return Partitioned(clients=clients, left_out=left_out, records=kept)


def _expect_clients(names: Sequence[str], groups: Mapping[str, list[int]]) -> None:
    problems = [
        Problem(
            where="data.partition.without",
            expected=f"clients of this data ({', '.join(sorted(groups)[:20])})",
            found=name,
            remedy="".join(f"Did you mean {near}?" for near in get_close_matches(name, groups, n=1)),
        )
        for name in names
        if name not in groups
    ]
    if problems:
        raise ConfigInvalid("The clients to leave out are not those of this data.", problems=problems)


def client_name(value: object) -> str:
    """A value of the client column as a name of letters, digits and hyphens, at most 40.

    Example:
        >>> client_name("St. Mary's (North)"), client_name(3), client_name("Zürich")
        ('st-mary-s-north', '3', 'zurich')
    """
    text = label_name(value) or str(value)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-")
    return name or "client-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _by_column(records: Records, column: str) -> dict[str, list[int]]:
    """Row numbers of each natural client."""
    log = ProblemLog()
    if column not in records.columns():
        log.add("data.partition.column", f"one of {', '.join(records.columns())}", repr(column))
        log.raise_if_any("client column")
    groups: dict[str, list[int]] = {}
    values: dict[str, str] = {}
    for i, (row, origin) in enumerate(zip(records.rows, records.origins, strict=True)):
        value = label_name(row.get(column))
        if value is None:
            log.add(f"{origin}: {column}", "a client: text or a whole number", f"{row.get(column)!r:.40}")
            continue
        name = client_name(value)
        if values.setdefault(name, value) != value:
            log.add(f"{origin}: {column}", "values that differ in letters or digits", f"{values[name]!r} and {value!r}")
        groups.setdefault(name, []).append(i)
    log.raise_if_any(f"client column {column!r}")
    return groups


def _whole_people(records: Records, how: Partition, seed: int, owners: Owners) -> dict[str, list[int]]:
    """Row numbers of each client: people dealt in equal shares."""
    _, first, whose = np.unique(owners, return_index=True, return_inverse=True)
    rows: dict[int, list[int]] = {}
    for row, person in enumerate(whose):
        rows.setdefault(int(person), []).append(row)
    dealt = _synthetic(records.select(first.tolist()), how, seed)
    return {name: [row for person in people for row in rows[person]] for name, people in dealt.items()}


def _expect_apart(groups: Mapping[str, list[int]], owners: Owners, how: Partition) -> None:
    """Nobody is with two clients: each hides what it has of a person, and together they would promise less."""
    seen = np.concatenate([np.unique(owners[rows]) for rows in groups.values()])
    if crossing := len(seen) - len(np.unique(seen)):
        raise DataInvalid(
            f"Expected no person with two clients (privacy.persons), found {crossing} by {how.by!r}; partition by iid, "
            "which then deals people, or by a column under which nobody is twice."
        )


def _synthetic(records: Records, how: Partition, seed: int) -> dict[str, list[int]]:
    """Row numbers of each client, cut from a seeded random order: equal shares, or by Flower's partitioners."""
    if not 1 <= how.clients <= len(records):
        raise DataInvalid(f"Expected 1 <= data.partition.clients={how.clients} <= {len(records)} records.")
    # Partitioners cut consecutive rows: the order they see has to be random, whatever the file's is.
    order = generator(seed, "partition order").permutation(len(records)).tolist()
    if how.by == "iid":
        # As Flower's IidPartitioner does it, which would first import four seconds of plotting.
        return _named([rows.tolist() for rows in np.array_split(order, how.clients)])
    return _named(_by_label(records, how, order, derive_seed(seed, "partition draw")))


def _named(shares: Sequence[list[int]]) -> dict[str, list[int]]:
    width = len(str(len(shares)))
    return {f"client-{number:0{width}}": rows for number, rows in enumerate(shares, 1)}


def _by_label(records: Records, how: Partition, order: list[int], draw: int) -> list[list[int]]:
    """Row numbers of each client, from Flower's partitioners over (row, label)."""
    try:
        import datasets
        from flwr_datasets.partitioner import DirichletPartitioner, ShardPartitioner
    except ImportError as error:
        raise ResourceMissing(
            f"Expected the package flwr-datasets for data.partition.by={how.by!r}, found none; "
            "pip install 'fedpeft[demo]'."
        ) from error
    labels = _labels(records, how.column or "label")
    if how.by == "dirichlet":
        partitioner = DirichletPartitioner(
            num_partitions=how.clients, partition_by="label", alpha=how.alpha, min_partition_size=0,
            self_balancing=False, shuffle=False, seed=draw,
        )  # fmt: skip
    else:
        shards = how.clients * how.shards_per_client
        partitioner = ShardPartitioner(
            num_partitions=how.clients, partition_by="label", shard_size=-(-len(records) // shards),
            keep_incomplete_shard=True, shuffle=False, seed=draw,
        )  # fmt: skip
    partitioner.dataset = datasets.Dataset.from_dict({"row": order, "label": [labels[i] for i in order]})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # datasets calls an older pyarrow
            return [[int(row) for row in partitioner.load_partition(i)["row"]] for i in range(how.clients)]
    except ValueError as error:
        raise DataInvalid(
            f"Expected enough records for clients={how.clients} by {how.by}, found {len(records)}: {error}"
        ) from error


def _first_of(value: object) -> str | None:
    """A class to deal by, of a number its whole part, of labels the first by name."""
    number, names = number_of(value), label_set(value)
    return str(math.floor(number)) if number is not None else min(names) if names else None


def _labels(records: Records, column: str) -> list[str]:
    """The label column's class names."""
    log = ProblemLog()
    names: list[str] = []
    for row, origin in zip(records.rows, records.origins, strict=True):
        name = label_name(row.get(column)) or _first_of(row.get(column))
        if name is None:
            log.add(f"{origin}: {column}", "a class", f"{row.get(column)!r:.40}", "Name it in data.partition.column.")
        names.append(name or "")
    log.raise_if_any(f"label column {column!r}")
    return names
