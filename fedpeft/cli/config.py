"""`fedpeft config`: everything one can ask about a run.toml without starting anything."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import json_option, say_json

if TYPE_CHECKING:
    from fedpeft.config import RunConfig

__all__ = ["command"]

_file = click.argument("file", type=click.Path(path_type=Path))
_set = click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override one key. Repeatable.")
_deployment = click.option(
    "--deployment", is_flag=True, help="Check as for a deployment, which allows less than a simulation."
)


@click.group(short_help="Validate and explain run.toml.")
def command() -> None:
    """Validate and explain run.toml."""


@command.command()
@_file
@_set
@_deployment
@json_option
def validate(file: Path, overrides: tuple[str, ...], deployment: bool, as_json: bool) -> None:
    """Report all problems of FILE at once. Exits with 3 if there are any."""
    from fedpeft.config import config_digest, load

    config = load(file, overrides, simulation=not deployment)
    _expect_base_fits(config)
    if as_json:
        say_json({"file": str(file), "valid": True, "run": config.run.name, "config": config_digest(config)})
        return
    click.echo(f"{file}: valid, run {config.run.name!r}, {config_digest(config)}")


def _expect_base_fits(config: "RunConfig") -> None:
    """Checks task and adapter against a base that lies on this machine; one that must be fetched is checked later."""
    from fedpeft.base.fit import fit_problems, published_config
    from fedpeft.errors import ConfigInvalid

    published = published_config(config.base.model)
    if published is not None and (problems := fit_problems(published, config.task, config.adapter)):
        raise ConfigInvalid("The base does not fit the task.", problems=problems)


@command.command()
@_file
@_set
@_deployment
def show(file: Path, overrides: tuple[str, ...], deployment: bool) -> None:
    """Print FILE with every default filled in. A run writes the same to resolved.toml."""
    from fedpeft.config import load, resolved

    click.echo(resolved(load(file, overrides, simulation=not deployment)), nl=False)


@command.command()
def schema() -> None:
    """Print the JSON Schema of run.toml, for editors."""
    from fedpeft.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@command.command()
@click.option("--deployed", is_flag=True, help="For a deployment: leave out what each device's site.toml decides.")
def template(deployed: bool) -> None:
    """Print a run.toml with every key, its default and its meaning."""
    from fedpeft.config.schema import template as commented

    click.echo(_without_devices(commented()) if deployed else commented(), nl=False)


def _without_devices(text: str) -> str:
    """Without the sections that a deployment does not read."""
    kept, skipping = [], False
    for block in text.split("\n\n"):
        heads = [line.lstrip("# ") for line in block.splitlines() if re.fullmatch(r"(# )?\[+[a-z0-9_.]+\]+", line)]
        if heads:
            skipping = heads[0].lstrip("[").startswith(("data", "device", "performance"))
        if not skipping:
            kept.append(block)
    return "\n\n".join(kept).rstrip() + "\n"
