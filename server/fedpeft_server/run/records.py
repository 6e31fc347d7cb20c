"""What a run directory records, typed: manifest, one row per round, one event per transition, one summary.

Each is one JSON object whose keys are the fields below. Reading is strict: an unknown key, a missing one
or another type is refused, so a file of another version is never half understood. A change of the fields
changes ``SCHEMA_VERSION``.
"""

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from fedpeft import bounded_json
from fedpeft.bounded_json import JsonLimits, JsonRefused
from fedpeft.errors import IntegrityFailed

__all__ = [
    "SCHEMA_VERSION",
    "ClientRound",
    "ClientScore",
    "ClientState",
    "Comparison",
    "EventRecord",
    "RoundMetrics",
    "RunManifest",
    "Summary",
    "from_json",
    "to_json",
]

SCHEMA_VERSION = 1
_STRICT = ConfigDict(strict=True, extra="forbid")
T = TypeVar("T")

ClientState = Literal["summed", "dropped", "refused", "later", "rejected", "not_needed"]
"""What became of a device in a round; see ``ClientRound``."""


def _as_called_now(state: object) -> object:
    """Runs of earlier versions say ``spared``."""
    return "not_needed" if state == "spared" else state


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """Where a run came from.

    Args:
        run_id: the directory's name.
        created: UTC, ISO 8601.
        command: the command line that started it.
        versions: package -> version; ``python`` among them.
        platform: operating system and processor.
        seeds: purpose -> seed.
        base_digest: the base artifact.
        adapter_digest: the adapter specification (``adapter.json`` holds it).
        config_digest: of ``resolved.toml``.
        source_digest: of ``run.toml``.
        data_digest: of the clients' examples in a simulation; empty where devices hold them.
        convention: the columns of those examples, such as ``messages`` (of preferences those of their prompts and
            answers); empty where devices hold them.
        plugins: what other packages had in it, such as ``method gains``, each with its package and version.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema_version: Literal[1] = 1
    run_id: str
    created: str
    command: tuple[str, ...]
    versions: dict[str, str]
    platform: str
    seeds: dict[str, int]
    base_digest: str
    adapter_digest: str
    config_digest: str
    source_digest: str
    data_digest: str = ""
    convention: str = ""
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRound:
    """One device's part in one round, as the coordinator saw it: nothing about its data.

    Args:
        client: its name.
        methods: what it trains, as its profile says, e.g. ``lora r4``.
        state: ``summed``, or where it was lost: ``dropped`` (silent), ``refused`` (its own policy), ``later`` (other
            hours) or ``rejected`` (its message was wrong); or ``not_needed``: enough others were ready
            first.
        reason: why it was lost.
        bytes_up: bytes it sent in this round.
        bytes_down: bytes it was sent.
        seconds: from the first request to the last reply.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    client: str
    methods: str
    state: Annotated[ClientState, BeforeValidator(_as_called_now)]
    reason: str = ""
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundMetrics:
    """One committed round. The row in ``metrics.jsonl`` is the commit.

    Args:
        round: from 1; 0 is the initial state, if it was evaluated.
        burnt: why the round has no sum although its survivors were fixed: the state stayed, its number is used up;
            empty: it has one.
        loss: mean over held-out examples, of the state that the round began with (``fedpeft.round.metrics``);
            None when nothing was evaluated or it was not finite.
        accuracy: share of those examples that were right, 0..1, to 1/64 on each device.
        evaluators: devices with held-out examples in that mean; 0 when nothing was evaluated, or with noise. 1 in a row
            that an earlier version wrote, which says only that there were some.
        train_loss: mean over the examples that the devices trained on in this round; None when they did not train.
        metrics: the task's further ones, by name; ``f1/NAME`` is one class's. Empty under privacy.
        rate_losses: held-out losses at multiples of the mean first step, in the round that measures the learning rate
            (``fedpeft.round.rates.search``); empty in others.
        devices_invited: asked to train.
        devices_ready: trained and advertised keys.
        devices_survived: in the sum.
        bytes_up: from all devices.
        bytes_down: to all devices.
        seconds: wall time of the round, since the coordinator's last start.
        skipped: block -> why it was not summed.
        rejected: client -> why it was not heard.
        clients: one entry per device, where the coordinator may tell them apart.
        checkpoint: file -> ``sha256:<hex>``; filled in by the commit.
        link: the round's link in the history of the run, encoded, hex (docs/protocol.md).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema_version: Literal[1] = 1
    round: int
    burnt: str = ""
    loss: float | None
    accuracy: float | None
    evaluators: int
    train_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    rate_losses: tuple[float, ...] = ()
    devices_invited: int
    devices_ready: int
    devices_survived: int
    bytes_up: int
    bytes_down: int
    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    clients: tuple[ClientRound, ...] = ()
    checkpoint: dict[str, str] = field(default_factory=dict)
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientScore:
    """What a simulation knows of one client in one round, and no coordinator ever learns.

    Args:
        round: that began with the state which was evaluated.
        loss: mean over these examples; None when it was not finite.
        accuracy: share of them that were right; None for a task without one.
        examples: how many predictions: held-out examples of a classifier, tokens of a language model.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    round: int
    loss: float | None
    accuracy: float | None
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One transition of the run.

    Args:
        at: UTC, ISO 8601.
        kind: what happened, e.g. ``round.aborted``.
        round: which round, if any.
        client: which device, if any.
        detail: what else there is to know; no tensors, no secrets.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema_version: Literal[1] = 1
    at: str
    kind: str
    round: int | None = None
    client: str = ""
    detail: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The score on one client's held-out examples, or on all of them, under each way of training.

    The summary's ``metric``: perplexity, lower is better; or another, of which higher is better.

    Args:
        client: its name, or ``all``.
        examples: how many predictions: held-out examples of a classifier, tokens of a language model.
        alone: trained on its own examples only (for ``all``: the mean over the clients of ``everywhere``).
        everywhere: that model of the client's own on the held-out examples of all clients.
        federated: the federation's adapter.
        centralised: trained on everybody's examples in one place.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    client: str
    examples: int
    alone: float | None
    federated: float | None
    centralised: float | None
    everywhere: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended.

    Args:
        outcome: ``finished`` when every round was committed.
        reason: why not, otherwise.
        rounds: committed.
        seconds: wall time of the federation, without baselines.
        bytes_up: from all devices in all rounds.
        bytes_down: to all devices.
        bytes_full_parameters: what a federation of every parameter would have moved; None when unknown.
        metric: what the comparison's numbers are: the task's ``compared``.
        comparison: one row per client and one for ``all``; empty when no baseline was run.
        confusion: of a simulation: how many held-out examples of the class of the row the kept state gives the class of
            the column, in the order of the task's labels; empty where the task has no such matrix.
        privacy: what the run promised and spent, one fact per line; empty without differential privacy.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema_version: Literal[1] = 1
    outcome: Literal["finished", "failed", "interrupted"]
    reason: str = ""
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    bytes_full_parameters: int | None = None
    metric: str = "accuracy"
    comparison: tuple[Comparison, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    privacy: tuple[str, ...] = ()


def to_json(record: RunManifest | RoundMetrics | ClientScore | EventRecord | Summary) -> str:
    """One line of JSON. A number that is not finite becomes null."""
    return _codec(type(record)).dump_json(record).decode()


def from_json(kind: type[T], text: str, *, where: str) -> T:
    """The inverse of ``to_json``.

    Args:
        kind: the record's class.
        text: one JSON object.
        where: the file and line, for the message.

    Raises:
        IntegrityFailed: the text is not such a record of this schema version.
    """
    try:
        record: T = _codec(kind).validate_json(_as_written_now(text) if kind is RoundMetrics else text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        raise IntegrityFailed(
            f"{where}: expected a {kind.__name__} of schema version {SCHEMA_VERSION}; {place}: {first['msg']}. "
            "If it is damaged, restore it from a copy; if it is of another version, read it with the fedpeft version "
            "named in manifest.json."
        ) from error
    return record


def _as_written_now(row: str) -> str:
    """Rows of runs before sums held no counts (ADR 0012) have ``examples``, and not how many devices they were on."""
    if '"examples":' not in row:
        return row
    try:
        found = bounded_json.loads(row, JsonLimits(max_bytes=len(row.encode())))
    except JsonRefused:
        return row  # which is refused with its reason
    if not isinstance(found, dict) or "evaluators" in found or type(found.get("examples")) is not int:
        return row
    return json.dumps({"evaluators": int(bool(found.pop("examples"))), **found})


def _codec(kind: type[T]) -> TypeAdapter[T]:
    return _cached(kind)  # type: ignore[arg-type, return-value]


@cache
def _cached(kind: Hashable) -> TypeAdapter[object]:
    return TypeAdapter(kind)  # type: ignore[arg-type]
