"""`fedpeft client adapter`: the model that this device helped to train."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpeft.cli.asking import (
    say_evaluation,
    say_predictions,
    with_how,
    with_prediction_options,
)
from fedpeft.cli.homes import device_home, device_home_option
from fedpeft.cli.options import json_option, say_json, with_evaluation_options
from fedpeft.terminal import counted

if TYPE_CHECKING:
    from fedpeft.deployment.messages import AdapterEntry
    from fedpeft.tasks.generated import Generation
    from fedpeft_client.home import DeviceHome
    from fedpeft_client.inference import ReceivedModel

__all__ = ["adapter"]


@click.group(short_help="List, fetch and use the trained adapters.")
def adapter() -> None:
    """List, fetch and use the trained adapters of runs that this device took part in."""


@adapter.command("ls")
@device_home_option
@json_option
def list_(home: Path | None, as_json: bool) -> None:
    """List the adapters that this device may fetch, newest run first."""
    where = device_home(home)
    entries = _listed(where)
    if as_json:
        rows = [
            {"run": one.run_id, "slot": one.slot, "rounds": one.rounds, "base": one.base, "bytes": _size(one)}
            for one in entries
        ]
        say_json(rows)
        return
    for one in entries:
        here = "  here" if _folder(where, one.run_id).is_dir() else ""
        click.echo(f"{one.run_id}  {one.slot} after {counted(one.rounds, 'round')}  {_size(one) / 2**20:.1f} MiB{here}")
    if not entries:
        click.echo("none: adapters go to devices that were in a run's sums; ask the coordinator's operator", err=True)


@adapter.command()
@click.argument("run")
@device_home_option
def pull(run: str, home: Path | None) -> None:
    """Fetch the adapter of RUN and check its digests. RUN is a name from `ls`, or `latest`."""
    from fedpeft_client.connection.fetch_adapter import fetch_adapter
    from fedpeft_client.connection.grpc_client import Link

    where = device_home(home)
    entry = _chosen(_listed(where), run)
    folder = _folder(where, entry.run_id)
    with Link.of_home(where) as link:
        fetched = fetch_adapter(link, entry, folder)
    click.echo(f"{folder}: {entry.slot} after {counted(entry.rounds, 'round')}, {fetched or 'no'} bytes fetched")


@adapter.command()
@click.argument("run")
@with_prediction_options
@device_home_option
def predict(
    *, run: str, written_as: str | None, max_tokens: int, temperature: float, top_p: float, seed: int,
    home: Path | None, **what: Any,
) -> None:  # fmt: skip
    """Predict for TEXTS or the rows of a file. Works offline, with the fetched adapter of RUN."""
    from fedpeft.tasks import Convention
    from fedpeft_client.inference import Sampling

    how = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    say_predictions(_received(home, run).answerer(Convention(written_as) if written_as else None), how, **what)


@adapter.command()
@click.argument("run")
@with_how
@device_home_option
def chat(
    *, run: str, written_as: str | None, max_tokens: int, temperature: float, top_p: float, seed: int,
    home: Path | None,
) -> None:  # fmt: skip
    """Chat with the fetched language model of RUN. Works offline."""
    from fedpeft.cli.asking import chat as converse
    from fedpeft.tasks import Convention
    from fedpeft_client.inference import Sampling

    how = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    converse(_received(home, run).answerer(Convention(written_as) if written_as else None), how)


@adapter.command("eval")
@click.argument("run")
@with_evaluation_options
@device_home_option
def evaluate(
    run: str, data: str, column_map: dict[str, str], generation: "Generation | None", home: Path | None, as_json: bool
) -> None:
    """Evaluate a fetched adapter on local examples. Works offline; the result stays here."""
    from fedpeft.data import load_records

    model = _received(home, run)
    score = model.evaluate(load_records(data, column_map), generation)
    say_evaluation(run, model.metrics(score), score, unit=model.task.record.counted, as_json=as_json)


def _received(home: Path | None, run: str) -> "ReceivedModel":
    from fedpeft.errors import ResourceMissing
    from fedpeft_client.inference import ReceivedModel

    where = device_home(home)
    there = sorted((path for path in (where.path / "adapters").glob("[!.]*") if path.is_dir()), reverse=True)
    folder = there[0] if run == "latest" and there else _folder(where, run)
    if folder not in there:
        raise ResourceMissing(
            f"Expected the adapter of {run} here, found none; fetch it: `fedpeft client adapter pull`."
        )
    return ReceivedModel.load(folder, where.bases())


def _listed(where: "DeviceHome") -> "tuple[AdapterEntry, ...]":
    from fedpeft_client.connection.fetch_adapter import listed_adapters
    from fedpeft_client.connection.grpc_client import Link

    where.enrolment()
    with Link.of_home(where) as link:
        return listed_adapters(link)


def _chosen(entries: "tuple[AdapterEntry, ...]", run: str) -> "AdapterEntry":
    from fedpeft.errors import ResourceMissing

    found = entries[:1] if run == "latest" else [one for one in entries if one.run_id.startswith(run)]
    if len(found) != 1:
        names = ", ".join(one.run_id for one in found or entries) or "none"
        raise ResourceMissing(f"Expected one run by the name {run}, found {len(found)}; there are: {names}.")
    return found[0]


def _folder(where: "DeviceHome", run_id: str) -> Path:
    return where.path / "adapters" / Path(run_id).name


def _size(entry: "AdapterEntry") -> int:
    return sum(file.size_bytes for file in entry.files)
