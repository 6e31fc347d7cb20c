"""Which blocks a device trains: the best workload of a menu that fits its limits, and why.

Pure: the same profile, limits and menu give the same plan. Preferred, in this order: more LoRA, counted as rank
times layers (it serves the global model and runs in peft, vLLM and llama.cpp), more methods beside it, the head, more
layers, the larger batch, activations cached, the base unpacked once. A predicted number counts as too
large when it exceeds its limit by the model's stated error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Literal

from fedpeft.catalogue import ROWS, TIERED
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.lora import Lora, lora_tiers
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.planner.cost import MEMORY_ERROR, TIME_ERROR, UNCALIBRATED, Calibration, Estimate, estimate
from fedpeft.planner.hardware import DeviceProfile
from fedpeft.planner.placement import adapted_layers, present_methods
from fedpeft.planner.workload import Workload
from fedpeft.terminal import span

__all__ = ["CapacityPlan", "DeviceLimits", "Menu", "Rejected", "menu_of", "plan"]

MIB, GIB = 2**20, 2**30
RESIDENCIES: tuple[Literal["dense", "quantized"], ...] = ("dense", "quantized")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """What a device may spend.

    Args:
        ram_bytes: of the training process; None: what is free.
        uplink_bits_s: None: not limited.
        fit_deadline_s: for the evaluation and training of one round.
        upload_deadline_s: for sending what was trained.
    """

    ram_bytes: int | None = None
    uplink_bits_s: float | None = None
    fit_deadline_s: float
    upload_deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Menu:
    """What there is to choose from.

    Args:
        shape: the base.
        workloads: any order; see ``menu_of``.
        calibration: of the device, if a step was measured.
        bits, cohort: of the secure sum.
    """

    shape: BaseShape
    workloads: tuple[Workload, ...]
    calibration: Calibration = UNCALIBRATED
    bits: int = 32
    cohort: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A preferred choice that does not fit: what it is, and the limit that it breaks first."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """What a device trains.

    Args:
        workload: the choice.
        estimate: what it is predicted to cost.
        sentence: the choice and its reason, for a person.
        rejected: what would have been preferred, best first.
    """

    workload: Workload
    estimate: Estimate
    sentence: str
    rejected: tuple[Rejected, ...]


def plan(profile: DeviceProfile, limits: DeviceLimits, menu: Menu) -> CapacityPlan:
    """The most preferred workload that fits.

    Raises:
        ConfigInvalid: none fits; says what the cheapest one would need.
    """
    named = sorted(menu.workloads, key=lambda workload: workload.methods)  # ties must not hang on the menu
    ranked = sorted(named, key=lambda workload: _preference(menu.shape, workload), reverse=True)
    rejected: dict[str, Rejected] = {}
    costs: list[tuple[Estimate, str]] = []
    for workload in ranked:
        cost = estimate(menu.shape, workload, profile, menu.calibration, bits=menu.bits, cohort=menu.cohort)
        reason = _misfit(profile, limits, workload, cost)
        if not reason:
            sentence = _sentence(menu.shape, limits, workload, cost, tuple(rejected.values()))
            others = tuple(one for what, one in rejected.items() if what != _name(menu.shape, workload))
            return CapacityPlan(workload=workload, estimate=cost, sentence=sentence, rejected=others)
        what = _name(menu.shape, workload)
        rejected[what] = Rejected(what=what, reason=reason)  # the last of a kind is the one that comes nearest
        costs.append((cost, what))
    cost, what = min(costs, key=lambda pair: pair[0].peak_bytes)
    raise ConfigInvalid(
        "No method fits this device.",
        problems=[
            Problem(
                where="device limits",
                expected=f"{_gib(_upper(cost))} of memory, {span(cost.round_s * (1 + TIME_ERROR))} a round and "
                f"{_mb(cost.bytes_up)} up for {what}",
                found=rejected[what].reason,
                remedy="Raise the limit, lower train.batch_size or task.max_length, or leave the device out.",
            )
        ],
    )


def menu_of(
    shape: BaseShape,
    adapter: Adapter,
    like: Workload,
    *,
    layers: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    cache: bool = True,
) -> tuple[Workload, ...]:
    """Every way to train some of ``adapter``: each set of methods, each tier, each residency, recomputing or not.

    Args:
        like: steps, lengths, task, whether the head is trained, and the batch size if ``batch_sizes`` is empty.
        layers: numbers of top layers to consider; empty: as the adapter says.
        batch_sizes: to consider.
        cache: whether frozen layers below the adapted ones are cached, as ``fedpeft_client.training.trainer`` does;
            ``like.cached_examples`` says of how many examples.
    """
    found = []
    for depth, batch_size, residency in product(layers or (None,), batch_sizes or (like.batch_size,), RESIDENCIES):
        adapted = adapter if depth is None else adapter.model_copy(update={"layers": depth})
        below = shape.layers - adapted_layers(shape, adapted)
        cached = like.cached_examples if cache and below else 0
        for methods, rank, head in _choices(shape, adapted, like):
            one = replace(
                like,
                adapter=adapted,
                methods=methods,
                rank=rank,
                head=head,
                batch_size=batch_size,
                residency=residency,
                cached_examples=cached,
            )
            found.append(one)
            if methods:  # else no layer has a backward pass to compute it again for
                found.append(replace(one, checkpointing=True))
    return tuple(found)


def _choices(shape: BaseShape, adapter: Adapter, like: Workload) -> Iterator[tuple[tuple[str, ...], int | None, bool]]:
    methods, lora = present_methods(shape, adapter), adapter.of(Lora)
    can_head = like.head and adapter.head and like.classes > 0
    for count in range(len(methods) + 1):
        for chosen in combinations(methods, count):
            if not chosen and not can_head:
                continue
            ranks = lora_tiers(lora) if lora and TIERED & {*chosen} else (None,)
            for rank in ranks:
                yield chosen, rank, can_head


def _preference(shape: BaseShape, workload: Workload) -> tuple[int, ...]:
    layers = adapted_layers(shape, workload.adapter) if workload.methods else 0
    return (
        (workload.rank or 0) * layers,
        len(workload.methods),
        int(workload.head),
        layers,
        len(_programs(workload)),
        workload.batch_size,
        int(workload.cached_examples > 0),
        int(not workload.checkpointing),
        int(workload.residency == "dense"),
    )


def _misfit(profile: DeviceProfile, limits: DeviceLimits, workload: Workload, cost: Estimate) -> str:
    """The first limit that a workload breaks; empty when it fits."""
    ram = profile.available_bytes if limits.ram_bytes is None else min(limits.ram_bytes, profile.total_bytes)
    if _upper(cost) > ram:
        return f"needs {_gib(_upper(cost))} of memory, {_gib(ram)} allowed"
    slowest = cost.round_s * (1 + TIME_ERROR)
    if slowest > limits.fit_deadline_s:
        return f"needs up to {span(slowest)} to train a round, {span(limits.fit_deadline_s)} allowed"
    upload = _upload_s(limits, cost)
    if upload > limits.upload_deadline_s:
        return f"needs {span(upload)} to upload {_mb(cost.bytes_up)}, {span(limits.upload_deadline_s)} allowed"
    return ""


def _upper(cost: Estimate) -> int:
    return round(cost.peak_bytes * (1 + MEMORY_ERROR))


def _upload_s(limits: DeviceLimits, cost: Estimate) -> float:
    return 8 * cost.bytes_up / limits.uplink_bits_s if limits.uplink_bits_s else 0.0


def _name(shape: BaseShape, workload: Workload) -> str:
    layers = adapted_layers(shape, workload.adapter) if workload.methods else 0
    where = f" in {layers} of {shape.layers} layers" if 0 < layers < shape.layers else ""
    return f"{workload}{where}, batch {workload.batch_size}"


def _sentence(
    shape: BaseShape, limits: DeviceLimits, workload: Workload, cost: Estimate, rejected: tuple[Rejected, ...]
) -> str:
    name = _name(shape, workload)
    base = "" if workload.residency == "dense" else " on the packed base"
    base += ", its layers computed again in the backward pass" if workload.checkpointing else ""
    upload = f" ({span(_upload_s(limits, cost))} of upload)" if limits.uplink_bits_s else ""
    spent = f"{_gib(cost.peak_bytes)} of memory, {span(cost.round_s)} and {_mb(cost.bytes_up)} up{upload} a round"
    others = [one for one in rejected if one.what != name]
    if others:
        why = f"{others[0].what} {others[0].reason}"
    elif rejected:
        why = f"without that it {rejected[0].reason}"
    else:
        why = f"no larger choice is offered by the run, {_served(workload)}"
    return f"Trains {name}{base} (predicted: {spent}), because {why}."


def _served(workload: Workload) -> str:
    """What can run the methods that are trained, from the catalogue."""
    return f"and {', '.join(_programs(workload)) or 'fedpeft'} can run it"


def _programs(workload: Workload) -> list[str]:
    programs = [ROWS[method].served_by for method in (*workload.methods, *(["head"] * workload.head))]
    return [name for name in programs[0] if all(name in others for others in programs)] if programs else []


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _mb(size: float) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
