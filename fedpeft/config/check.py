"""Checks across fields: combinations that are each valid alone and impossible together.

Every check is a generator of findings over a well-typed ``RunConfig``. A finding names the keys it
read, so that ``fedpeft.config.load`` can leave out those that rest on a value already refused.
"""

import re
import typing
from collections.abc import Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.cohorts import effective_cohort
from fedpeft.config import derived
from fedpeft.config.check_aggregate import aggregate_findings
from fedpeft.config.check_devices import (
    client_keys,
    device_findings,
    device_name_findings,
    lora_findings,
    repeated,
)
from fedpeft.config.check_generation import generation_findings
from fedpeft.config.check_privacy_section import privacy_findings
from fedpeft.config.check_schedule import late_work_findings, schedule_findings
from fedpeft.config.model import MethodName, Partition, RunConfig
from fedpeft.tasks import TASKS

__all__ = ["Finding", "check"]


def check(config: RunConfig, *, simulation: bool) -> tuple[Finding, ...]:
    """Every impossible combination in ``config``.

    Args:
        config: well-typed, as pydantic leaves it.
        simulation: whether all clients live on this machine; a deployment allows less.
    """
    checks = (
        _sources,
        _task,
        _range,
        generation_findings,
        lora_findings,
        _layers,
        schedule_findings,
        _blocks,
        device_findings,
        device_name_findings,
        _partition,
        _rounds,
        _cohorts,
        aggregate_findings,
        privacy_findings,
    )
    findings = [finding for one in checks for finding in one(config)]
    if not simulation:
        findings += _deployment(config)
    return tuple(findings)


def _sources(config: RunConfig) -> Iterator[Finding]:
    model, source = config.base.model, config.data.source
    shapes = {
        "hub:": (r"hub:[^/@\s]+/[^/@\s]+@[0-9a-f]{40}", "`hub:ORG/NAME@REVISION` with a revision of 40 hex digits"),
        "pypi:": (r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*", "`pypi:PACKAGE`"),
        "sha256:": (r"sha256:[0-9a-f]{64}", "`sha256:` and 64 hex digits"),
        "builtin:": (r"(?!)", "a directory, a .gguf file, `pypi:`, `hub:` or `sha256:`; `builtin:` is for data.source"),
    }
    for prefix, (pattern, expected) in shapes.items():
        if model.startswith(prefix) and not re.fullmatch(pattern, model):
            remedy = "A branch name can move under a run; a commit cannot." if prefix == "hub:" else ""
            yield Finding(key="base.model", expected=expected, found=f'"{model}"', remedy=remedy)
    for key, text in (("base.model", model), ("data.source", source)):
        if not text.strip():
            yield Finding(key=key, expected="a name or a path", found="an empty string")


def _task(config: RunConfig) -> Iterator[Finding]:
    task = config.task
    twice = repeated(task.labels)
    if twice:
        yield Finding(key="task.labels", expected="each label once", found=f"again: {', '.join(twice)}")
    if task.labels and not task.record.named_outputs:
        yield Finding(
            key="task.labels",
            reads=("task.kind",),
            expected=f"no labels for {task.kind}",
            found=f"{len(task.labels)} labels",
            remedy=f"Remove them, or set task.kind to one of {', '.join(_with_labels())}.",
        )
    if task.record.named_outputs and len(task.labels) == 1:
        yield Finding(key="task.labels", reads=("task.kind",), expected="at least 2 classes", found="1 label")


def _range(config: RunConfig) -> Iterator[Finding]:
    task, metric = config.task, config.rounds.metric
    if task.range is not None and not task.record.a_number:
        expected = f"no range for {task.kind}"
        yield Finding(key="task.range", reads=("task.kind",), expected=expected, found=str(list(task.range)))
    elif task.range is not None and not task.range[0] < task.range[1]:
        yield Finding(key="task.range", expected="the lowest number, then a higher one", found=str(list(task.range)))
    if metric != "auto" and metric not in task.record.metrics:
        yield Finding(
            key="rounds.metric",
            reads=("task.kind",),
            expected=f"a metric of {task.kind}: {', '.join(task.record.metrics)}",
            found=f'"{metric}"',
        )
    if metric not in ("auto", "loss", "accuracy") and config.task.labels and config.task.measure is None:
        expected = "loss or accuracy: of so many classes, or of such tags, nothing else is measured"
        yield Finding(key="rounds.metric", reads=("task.labels",), expected=expected, found=f'"{metric}"')


def _with_labels() -> list[str]:
    return [record.name for record in TASKS.values() if record.named_outputs]


def _layers(config: RunConfig) -> Iterator[Finding]:
    for method, section in config.adapter.declared():
        name = method.name
        layers: tuple[int, int] | None = getattr(section, "layers", None)
        if layers is not None and not 0 <= layers[0] <= layers[1]:
            yield Finding(
                key=f"adapter.{name}.layers",
                expected="[first, last] with 0 <= first <= last, from 0 at the input",
                found=str(list(layers)),
            )
        if method.at_input and config.adapter.layers != "all":
            yield Finding(
                key="adapter.layers",
                reads=(f"adapter.{name}",),
                expected=f'"all" beside [adapter.{name}], which sits below every layer',
                found=str(config.adapter.layers),
                remedy="Use p_tuning_v2 or llama_adapter for the top layers alone.",
            )


def _blocks(config: RunConfig) -> Iterator[Finding]:
    head = config.adapter.head and config.task.record.adds_head
    if not head and not derived.method_names(config):
        methods = ", ".join(f"[adapter.{name}]" for name in typing.get_args(MethodName))
        yield Finding(
            key="adapter",
            reads=("task.kind",),
            expected=f"at least one of {methods}, or head = true for a task that adds one",
            found="nothing to train",
        )


def _partition(config: RunConfig) -> Iterator[Finding]:
    partition, fresh = config.data.partition, Partition()
    where, by = "data.partition", config.data.partition.by
    uses = {
        "column": ("column",),
        "iid": ("clients",),
        "dirichlet": ("clients", "column", "alpha"),
        "shards": ("clients", "column", "shards_per_client"),
    }[by]
    # Compared with the default, not with "was it written": resolved.toml writes every value and must load again.
    for option in ("column", "clients", "alpha", "shards_per_client"):
        value = getattr(partition, option)
        if option not in uses and value != getattr(fresh, option):
            yield Finding(
                key=f"{where}.{option}",
                reads=(f"{where}.by",),
                expected=f'no `{option}` when by = "{by}" (it uses {", ".join(uses)})',
                found=repr(value),
            )
    if by == "column" and not partition.column:
        yield Finding(
            key=f"{where}.column",
            reads=(f"{where}.by",),
            expected="the column whose values are the clients",
            found="an empty string",
        )
    if by != "column" and partition.clients < 1:
        yield Finding(
            key=f"{where}.clients",
            reads=(f"{where}.by",),
            expected=f'a number of clients when by = "{by}"',
            found=str(partition.clients),
        )


def _named(config: RunConfig) -> str:
    """The clients that ``[[device]]`` names, for somebody who misspelt one."""
    names = sorted({name for device in config.device for name in device.clients if name != "*"})
    return f" Named in [[device]]: {', '.join(names[:8])}." if names else ""


def _rounds(config: RunConfig) -> Iterator[Finding]:
    rounds, train = config.rounds, config.train
    if train.warmup_rounds >= rounds.count:
        yield Finding(
            key="train.warmup_rounds",
            reads=("rounds.count",),
            expected=f"fewer than rounds.count={rounds.count}, or the learning rate never reaches its value",
            found=str(train.warmup_rounds),
        )
    if rounds.over_select and rounds.fraction == 1:
        yield Finding(
            key="rounds.over_select",
            reads=("rounds.fraction",),
            expected="rounds.fraction < 1: with every device wanted there are none to spare",
            found=f"{rounds.over_select:g}",
            remedy="Set rounds.fraction to the share that is to make a round, or leave over_select out.",
        )
    if rounds.over_select and config.aggregate.buckets:
        yield Finding(
            key="rounds.over_select",
            reads=("aggregate.buckets",),
            expected="0 with aggregate.buckets: a bucket that the fastest leave empty is no bucket",
            found=f"{rounds.over_select:g}",
        )
    yield from late_work_findings(config)
    clients = derived.known_clients(config)
    if clients is None:
        return
    if clients < rounds.min_devices:
        yield Finding(
            key="rounds.min_devices",
            reads=(*client_keys(config), "data.partition"),
            expected=f"at most the {clients} clients there are",
            found=str(rounds.min_devices),
            remedy="No round could ever succeed: lower it, or add clients." + _named(config),
        )
    names = [name for device in config.device for name in device.clients]
    if "*" not in names and config.data.partition.by != "column" and len(names) != clients:
        yield Finding(
            key="device",
            reads=("data.partition", *client_keys(config)),
            expected=f'each of the {clients} clients in one [[device]], or an entry with clients = ["*"]',
            found=f"{len(names)} names",
        )


def _cohorts(config: RunConfig) -> Iterator[Finding]:
    secagg, rounds = config.secagg, config.rounds
    needed = effective_cohort(secagg.min_cohort, secagg.corrupt_fraction, rounds.min_devices)
    if needed > rounds.min_devices:
        yield Finding(
            key="rounds.min_devices",
            reads=("secagg.min_cohort", "secagg.corrupt_fraction"),
            expected=f"at least {needed}: secagg.min_cohort, and two devices beside those that may collude",
            found=str(rounds.min_devices),
            remedy="Raise rounds.min_devices: a smaller round could not release any block.",
        )
    cohort = derived.largest_cohort(config)
    bits = derived.value_bits(secagg, cohort)
    if bits < derived.MIN_VALUE_BITS:
        yield Finding(
            key="secagg.bits",
            reads=("data.partition", "rounds", *client_keys(config)),
            expected=f"at least {derived.MIN_VALUE_BITS} bits for a value; a sum of {cohort} devices "
            f"takes {secagg.noise_bits - bits} of the ring's {secagg.noise_bits}",
            found=f"{bits} bits left",
            remedy="Use bits = 32, or a smaller rounds.fraction.",
        )
    # Bell et al. 2020 (and Bonawitz et al. 2017, section 6.2): a threshold that the survivors reach and two
    # disjoint sets of peers cannot both reach exists only when 2 * dropout + corrupt < 1.
    if 2 * secagg.dropout_fraction + secagg.corrupt_fraction >= 1:
        yield Finding(
            key="secagg.dropout_fraction",
            reads=("secagg.corrupt_fraction",),
            expected="2 * dropout_fraction + corrupt_fraction < 1, or no sharing threshold is both safe and reachable",
            found=f"2 * {secagg.dropout_fraction:g} + {secagg.corrupt_fraction:g}",
        )


def _deployment(config: RunConfig) -> Iterator[Finding]:
    if config.secagg.mode == "off":
        yield Finding(
            key="secagg.mode",
            expected='"full" or "fast" outside a simulation',
            found='"off"',
            remedy="Without the secure sum the coordinator would hold every device's delta.",
        )
    if config.task.record.named_outputs and not config.task.labels:
        yield Finding(
            key="task.labels",
            reads=("task.kind",),
            expected="the class names in order: no coordinator sees the data that could tell",
            found="nothing",
        )
    if config.task.record.a_number and config.task.range is None:
        yield Finding(
            key="task.range",
            reads=("task.kind",),
            expected="the lowest and the highest number: no coordinator sees the data that could tell",
            found="nothing",
        )
