"""Who takes part in a simulation: clients with their examples and what each can afford."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain

from fedpeft.config import RunConfig
from fedpeft.config.derived import with_head_start
from fedpeft.config.model import Device, Task
from fedpeft.data import Loaded, Records, label_names, load, split_each, split_holdout, split_people
from fedpeft.data.memory import Rows
from fedpeft.data.people import PERSON, note_nobodys, owners_of
from fedpeft.data.preference.rows import asked_as
from fedpeft.data.remarks import label_remarks, loaded_remarks, text_remarks, unused_columns, unused_remarks
from fedpeft.data.targets import label_name, range_of
from fedpeft.data.tasks import Findings, inspect
from fedpeft.entropy import derive_seed
from fedpeft.errors import ConfigInvalid, DataInvalid, Problem
from fedpeft.tasks import READ_COLUMNS, Convention
from fedpeft_client.training.choice import Capacity
from fedpeft_sim.partition import partition

__all__ = ["Client", "Population", "expect_enough", "populate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One simulated client.

    Args:
        name: as in ``[[device]]``.
        device: its class of devices in the config.
        capacity: what it can train; nothing yet when ``planning`` is to find it.
        records: its examples, in the order of the data set.
        train, held_out: the same, split; disjoint, duplicates on one side.
    """

    name: str
    device: Device
    capacity: Capacity
    records: Records
    train: Records
    held_out: Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """All clients, by name in ascending order; the same for the same config, on every engine.

    Args:
        clients: at least three.
        config: the run with ``task.labels`` resolved.
        convention: what the columns of the examples are; of preferences, whose columns do not say how a prompt is
            written, the columns of a language model that is written so.
        left_out: client name -> examples, of clients too small to take part.
        plans: client name -> the planner's sentence, of clients whose methods were planned.
        remarks: what of the data is not used, or odd, in a sentence each.
    """

    clients: tuple[Client, ...]
    config: RunConfig
    convention: Convention
    left_out: Mapping[str, int]
    plans: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of every client's name and examples, ``sha256:<hex>``: the same wherever the files lay."""
        content = hashlib.sha256()
        write = json.JSONEncoder(sort_keys=True, default=str, separators=(",", ":")).encode
        for client in self.clients:
            content.update(f"client {client.name} {len(client.train)} {len(client.held_out)}\n".encode())
            for row in chain(client.train, client.held_out):
                content.update(write(row).encode() + b"\n")
        return f"sha256:{content.hexdigest()}"

    def by_plan(self) -> dict[str, list[str]]:
        """Each sentence once, with the clients that it is about."""
        grouped: dict[str, list[str]] = {}
        for name, sentence in self.plans.items():
            grouped.setdefault(sentence, []).append(name)
        return grouped


def populate(config: RunConfig, data: Rows | None = None) -> Population:
    """Load, check, partition and split the run's data.

    Args:
        config: the run.
        data: rows that a program holds, in the place of ``data.source``.

    Raises:
        DataInvalid: the data does not fit the task.
        ConfigInvalid: ``[[device]]`` names clients that the data does not have, or leaves some without an entry.
    """
    how = config.data.partition
    columns = (*READ_COLUMNS, *([how.column] if how.column else ()))
    by_people = config.privacy.unit == "person"
    named = {PERSON: config.privacy.column} if config.privacy.column else {}
    loaded = load(config.data.source if data is None else data, {**named, **config.data.map}, columns=columns)
    records = loaded.records
    findings = inspect(records, config.task, unread=loaded.unused)
    if by_people:
        note_nobodys(records, findings.log)
    findings.log.raise_if_any(f"{findings.convention.value} examples")
    parts = partition(records, config.data.partition, config.run.seed, owners=owners_of(records) if by_people else None)
    config = with_head_start(config.model_copy(update={"task": _of_data(config.task, parts.records)}))
    devices = _devices(config.device, parts.clients, absent=config.data.partition.without)
    clients = []
    # As a device does.
    split = split_people if by_people else split_each if config.privacy.unit == "example" else split_holdout
    for name, own in parts.clients.items():
        train, held_out = split(own, config.data.holdout, derive_seed(config.run.seed, "holdout"))
        if not len(train) or not len(held_out):
            raise DataInvalid(
                f"Expected examples to train on and to hold out at client {name}, "
                f"found {len(train)} and {len(held_out)}; raise data.partition.min_examples to leave such clients out."
            )
        device = devices[name]
        methods = () if device.methods == "auto" else device.methods
        capacity = Capacity(methods=methods, rank=device.rank, head=device.head)
        clients.append(Client(name=name, device=device, capacity=capacity, records=own, train=train, held_out=held_out))
    return Population(
        clients=tuple(clients),
        config=config,
        convention=asked_as(records[0]) if config.task.record.prefers else findings.convention,
        left_out=parts.left_out,
        remarks=(*_remarks(loaded, findings, config), *_lone_classes(parts.clients, config)),
    )


def _of_data(task: Task, records: Records) -> Task:
    """The task with its outputs' names, or its range, as the data has them where nobody gave them."""
    found: dict[str, object] = {}
    if task.record.named_outputs and not task.labels:
        found["labels"] = label_names(records, target=task.record.target)
    if task.record.a_number and task.range is None:
        found["range"] = range_of(records)
    return task.model_copy(update=found)


def expect_enough(population: Population) -> None:
    """Refuses a run that asks for more clients than there are: its first round could only be aborted.

    Raises:
        ConfigInvalid: ``rounds.min_devices`` or ``secagg.min_cohort`` is above the number of clients.
    """
    config, there = population.config, len(population.clients)
    wanted = {"rounds.min_devices": config.rounds.min_devices, "secagg.min_cohort": config.secagg.min_cohort or 0}
    problems = [
        Problem(
            where=key,
            expected=f"at most {there}, the clients of this data",
            found=str(number),
            remedy=f"{len(population.left_out)} clients are left out as too small." if population.left_out else "",
        )
        for key, number in wanted.items()
        if number > there
    ]
    if problems:
        raise ConfigInvalid("The run needs more clients than the data has; nothing was started.", problems=problems)


def _remarks(loaded: Loaded, findings: Findings, config: RunConfig) -> tuple[str, ...]:
    """What of the data is not used, and what is odd about its classes."""
    column, names = config.data.partition.column, {**loaded.aliases, **config.data.map}
    there = (*loaded.records.columns(), *loaded.unused)
    unused = unused_columns(there, findings.convention, names, also=[column] if column else ())
    one_class = config.task.record.one_class
    labels = Counter(label_name(row.get("label")) or "" for row in loaded.records) if one_class else Counter()
    return (
        *loaded_remarks(loaded, names),
        *text_remarks(loaded.records, findings.convention),
        *unused_remarks(unused, findings.unused_keys),
        *label_remarks(labels),
    )


def _lone_classes(clients: Mapping[str, Records], config: RunConfig) -> tuple[str, ...]:
    """Says so where most clients hold one class alone: each then unlearns what the others teach."""
    if not config.task.record.one_class or len(config.task.labels) < 2:
        return ()
    lone = [name for name, own in clients.items() if len(set(map(label_name, own.values("label")))) == 1]
    if 2 * len(lone) <= len(clients):
        return ()
    named = ", ".join(lone[:4]) + (", ..." if len(lone) > 4 else "")
    text = f"{len(lone)} of {len(clients)} clients hold one class alone ({named})"
    return (f"{text}: the accuracy may swing from round to round; the best state is kept",)


def _devices(
    devices: tuple[Device, ...], clients: Mapping[str, Records], *, absent: Collection[str] = ()
) -> dict[str, Device]:
    found: dict[str, Device] = {}
    problems = []
    everyone: Device | None = None
    for index, device in enumerate(devices):
        for name in device.clients:
            if name == "*":
                everyone = device
            elif name in clients:
                found[name] = device
            elif name not in absent:
                known = ", ".join(sorted(clients)[:20])
                problems.append(
                    Problem(where=f"device[{index}].clients", expected=f"clients of this data ({known})", found=name)
                )
    for name in clients:
        if name not in found and everyone is None:
            remedy = 'Add it to a [[device]], or add one with clients = ["*"].'
            problems.append(
                Problem(where="device", expected=f"an entry for client {name}", found="none", remedy=remedy)
            )
        elif everyone is not None:
            found.setdefault(name, everyone)
    if problems:
        raise ConfigInvalid("The devices do not fit the clients of this data.", problems=problems)
    return found
