"""What several commands share: one form of ``--map``, one name for a base model, runs by name, commands to paste.

An option that means one thing is made here once, so that it is spelled, parsed and refused alike everywhere.
"""

import math
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fedpeft.errors import DataInvalid

__all__ = [
    "AdapterPath",
    "FiniteFloat",
    "OutFolder",
    "RunPath",
    "TaskKind",
    "ask_for",
    "json_option",
    "map_option",
    "model_option",
    "parse_map",
    "run_argument",
    "say_json",
    "store_option",
    "with_common_options",
    "with_evaluation_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])

LATEST = "latest"


class FiniteFloat(click.FloatRange):
    """A number in a range: ``inf`` and ``nan``, which Python and click take for numbers, are refused."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See ``click.ParamType``."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"Expected a finite number, found {value}.", param, ctx)
        return number


class TaskKind(click.ParamType):  # type: ignore[type-arg] # generic from click 8.3 on
    """A task by name. Their records load numpy, so they are looked at when somebody names one or asks for help."""

    name = "task"

    @staticmethod
    def _choice() -> "click.Choice[str]":
        from fedpeft.tasks import TASKS

        return click.Choice(list(TASKS))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See ``click.ParamType``."""
        return self._choice().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """See ``click.ParamType``."""
        return self._choice().get_metavar(param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """See ``click.ParamType``."""
        return self._choice().shell_complete(ctx, param, incomplete)


class RunPath(click.ParamType):  # type: ignore[type-arg] # generic from click 8.3 on
    """A run directory: a path, the name that `fedpeft runs ls` prints, the beginning of one, or ``latest``.

    Args:
        folder: where names are looked for.
    """

    name = "run"

    def __init__(self, folder: Path = Path("runs")) -> None:
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See ``click.ParamType``."""
        path = Path(value)
        if os.path.isdir(path):
            return path
        if os.path.exists(path):
            raise DataInvalid(f"Expected a run directory, found the file {path}.")
        names = sorted(one.name for one in self.folder.glob("*/") if (one / "manifest.json").is_file())
        if value == LATEST and names:
            return self.folder / max(names, key=lambda name: (self.folder / name / "manifest.json").stat().st_mtime)
        alike = [name for name in names if name.startswith(str(value)) or f"-{value}-" in name]
        if str(value) and str(value) in names:
            alike = [str(value)]
        if len(alike) == 1:
            return self.folder / alike[0]
        there = ", ".join(names[-5:]) or "none"
        what = f"{len(alike)} runs of that beginning ({', '.join(alike[:5])})" if alike else f"{str(value)!r}"
        raise DataInvalid(
            f"Expected a run directory, a name that `fedpeft runs ls` prints, or latest; found {what}. "
            f"The newest in {self.folder}: {there}."
        )

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[click.shell_completion.CompletionItem]":
        """The runs in the folder, and paths as the shell completes them."""
        from click.shell_completion import CompletionItem

        names = sorted(one.name for one in self.folder.glob("*/"))
        found = [CompletionItem(name) for name in (*names, LATEST) if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="dir")]


def run_argument(command: Command) -> Command:
    """The argument RUN."""
    return click.argument("run", type=RunPath())(command)


class AdapterPath(RunPath):
    """An exported adapter: its folder, or a run (as ``RunPath``), whose final adapter is meant."""

    name = "adapter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See ``click.ParamType``."""
        path: Path = super().convert(value, param, ctx)
        final = path / "adapters" / "final"
        return final if final.is_dir() and not (path / "inspect.json").is_file() else path


def map_option(command: Command) -> Command:
    """``--map OURS=THEIRS,...``, repeatable; the command gets ``column_map``, a dictionary."""
    return click.option(
        "--map",
        "column_map",
        multiple=True,
        metavar="OURS=THEIRS,...",
        callback=lambda _context, _parameter, pairs: parse_map(pairs),
        help="Map fedpeft's column names to yours: text=note,label=diagnosis. Repeatable.",
    )(command)


def model_option(help_text: str) -> Callable[[Command], Command]:
    """``--model``, which ``--base`` also names; the command gets ``model``."""
    return click.option("--model", "--base", "model", metavar="MODEL", help=help_text)


class OutFolder(click.Path):
    """A folder that a command will write: refused before any work where nothing can be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See ``click.ParamType``."""
        from fedpeft.files import expect_folder

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        expect_folder(path)
        return path


def store_option(command: Command) -> Command:
    """``--store``: where base artifacts lie; the command gets ``store``, a path or None for the user's own."""
    return click.option(
        "--store",
        type=click.Path(path_type=Path, file_okay=False),
        help="Store of base models. Default: $FEDPEFT_HOME/bases or ~/.cache/fedpeft/bases.",
    )(command)


def json_option(command: Command) -> Command:
    """``--json``: the answer as JSON; the command gets ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def say_json(answer: object) -> None:
    """Print the answer of ``--json``: one value, indented, no other line."""
    import json

    click.echo(json.dumps(answer, indent=2, ensure_ascii=False, default=str))


def with_common_options(command: click.Command) -> click.Command:
    """``-q``, ``-v`` and ``--no-color`` for a command and all below it, once."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_common_options(inner)
    elif not any(option.name == "quiet" for option in command.params):
        command.params += [
            _common(("-q", "--quiet"), "quiet", "Print only results, warnings and errors."),
            _common(("-v", "--verbose"), "verbose", "Print more detail, and the traceback of an error."),
            _common(("--no-color",), "no_color", "Print without colours, as NO_COLOR=1 does."),
        ]
    return command


def ask_for(context: click.Context, field: str) -> None:
    """What ``-q``, ``-v`` and ``--no-color`` do.

    Args:
        context: of the command.
        field: of ``Verbosity``.
    """
    from fedpeft.terminal import set_verbosity

    set_verbosity(**{field: True})
    if field == "no_color":
        os.environ["NO_COLOR"] = "1"  # rich reads it
        context.color = False


def _common(names: tuple[str, ...], field: str, help_text: str) -> click.Option:
    def set_it(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            ask_for(context, field)

    return click.Option(
        [*names, field], is_flag=True, expose_value=False, is_eager=True, callback=set_it, help=help_text
    )


def parse_map(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("text=note,label=dx",)`` -> ``{"text": "note", "label": "dx"}``.

    Raises:
        click.BadParameter: a pair without both sides, or a name of ours twice.
    """
    parsed: dict[str, str] = {}
    for pair in (part for group in pairs for part in group.split(",")):
        ours, mark, theirs = (piece.strip() for piece in pair.partition("="))
        if not (ours and mark and theirs):
            raise click.BadParameter(f"Expected OURS=THEIRS, found {pair!r}; write text=note.", param_hint="--map")
        if ours in parsed:
            raise click.BadParameter(f"Expected {ours!r} once, found it twice.", param_hint="--map")
        parsed[ours] = theirs
    return parsed


def with_evaluation_options(command: Command) -> Command:
    """``--data`` (also as an argument); the command gets ``data``, ``column_map``, ``generation`` and ``as_json``."""

    def chosen(context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
        found = [one for one in (value, context.params.pop("positional", None)) if one]
        if len(found) != 1:
            raise click.UsageError(f"Expected one set of examples, found {len(found)}; write --data FILE.")
        return str(found[0])

    @wraps(command)
    def asked(generate: int | None, max_new_tokens: int, **given: object) -> object:
        from fedpeft.tasks.generated import Generation

        wanted = None if generate is None else Generation(rows=generate, max_new_tokens=max_new_tokens)
        return command(generation=wanted, **given)

    found: Any = asked
    for option in (
        json_option,
        map_option,
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1, 1024),
            default=64,
            show_default=True,
            help="With --generate: tokens at which an answer is cut.",
        ),
        click.option(
            "--generate",
            type=click.IntRange(min=1),
            help="Generate answers to so many prompts, for ROUGE-L and exact match. [default: as the run did]",
        ),
        click.option(
            "--data", metavar="FILE", callback=chosen, help="Examples: a file, a data set directory or builtin:NAME."
        ),
        click.argument("positional", metavar="[DATA]", required=False, is_eager=True),
    ):
        found = option(found)
    return found  # type: ignore[no-any-return]
