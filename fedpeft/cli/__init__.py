"""The `fedpeft` command: a table of subcommands, imported when they are called, and the error shell around them.

A subcommand is a module ``fedpeft.cli.NAME`` that holds one click command (or group) named ``command``.
It imports what is heavy inside its functions, and raises ``FedpeftError`` for whatever a user can cause.

Invariants: this module imports nothing but click and ``fedpeft.errors``, so that `fedpeft --help` answers
at once; every way out of ``main`` has the exit code of docs/design.md, section 9; only a bug shows a traceback.
"""

import importlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

import click

from fedpeft import __version__
from fedpeft.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TERMINATED,
    FedpeftError,
    ResourceMissing,
    interrupt_behind,
)

__all__ = ["COMMANDS", "EXIT_PIPE_CLOSED", "HELD_S", "main"]

COMMANDS = {
    "init": "Write a run.toml for your own data.",
    "simulate": "Run a whole federation on this machine.",
    "sweep": "Simulate with different settings, and say which did best.",
    "unlearn": "Make a simulated run again without one of its devices.",
    "local": "Run a coordinator and its devices as processes on this machine.",
    "coordinator": "Run a coordinator: enrol devices, submit runs.",
    "client": "Run a device: join a federation, approve runs, fetch adapters.",
    "adapter": "Inspect, query, evaluate, serve and export a trained adapter.",
    "base": "Build, list and verify base models.",
    "data": "Check a data set before training on it.",
    "methods": "List the PEFT methods and plan what a device trains.",
    "privacy": "Plan a privacy budget, and report what a run has spent.",
    "config": "Validate and explain run.toml.",
    "doctor": "Check a coordinator's or a device's set-up.",
    "runs": "List, show and verify runs, and render their reports.",
}
"""Every subcommand and its line in the help, so that the help imports none of them."""

COMPLETE = "_FEDPEFT_COMPLETE"
"""Set by a shell for completion: `eval "$(_FEDPEFT_COMPLETE=bash_source fedpeft)"` in ~/.bashrc; zsh and fish alike."""

HELD_S = 0.5
"""Between two interrupts by hand; what comes faster is a key that repeats."""

EXIT_PIPE_CLOSED = 141
"""128 + SIGPIPE: whoever read our output went away, as with `| head`."""


class LazyGroup(click.Group):
    """A click group whose subcommands are modules, imported only when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the module of ``cmd_name``; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        from fedpeft.cli.options import with_common_options

        command: click.Command = importlib.import_module(f"fedpeft.cli.{cmd_name}").command
        return with_common_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name gets the nearest known one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean `fedpeft {near[0]}`?" if near else ""
            raise click.UsageError(f"Expected one of the commands {', '.join(COMMANDS)}; found {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _common(field: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """``fedpeft -q COMMAND`` means ``fedpeft COMMAND -q``."""

    def set_it(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            from fedpeft.cli.options import ask_for

            ask_for(context, field)

    return set_it


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-q", "--quiet", is_flag=True, expose_value=False, is_eager=True, callback=_common("quiet"), hidden=True)
@click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, is_eager=True, callback=_common("verbose"), hidden=True
)
@click.option("--no-color", is_flag=True, expose_value=False, is_eager=True, callback=_common("no_color"), hidden=True)
@click.version_option(__version__, prog_name="fedpeft")
def cli() -> None:
    """Fine-tune one language model together with others, without sharing data.

    \b
    Start here:
      fedpeft simulate airlines
      fedpeft init --data notes.csv && fedpeft simulate run.toml
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command line without the program's name; None: the process's own.

    Returns:
        The exit code: 0, the ``exit_code`` of the error, 2 for usage, 70 for a bug, 130 and 143 for signals.
    """
    if instruction := os.environ.get(COMPLETE):  # the shell asks; cli.main(), which would answer, is not used here
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "fedpeft", COMPLETE, instruction)
    _settle_streams()
    _reset_verbosity()
    given = list(sys.argv[1:] if arguments is None else arguments)
    pressed: list[float] = []
    listener = partial(_raise_interrupted, pressed)
    previous = _on(signal.SIGTERM, _raise_terminated)
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        _on(signal.SIGINT, listener)
    try:
        # Not cli.main(): it turns a closed pipe into exit code 1, which means a failed run here.
        with cli.make_context("fedpeft", list(given)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as mistake:
        mistake.show()
        return mistake.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        by_sigterm = any(isinstance(one, _Terminated) for one in (stop, stop.__context__))  # at a question: an Abort
        return _stopped(by_sigterm=by_sigterm, whole_process=arguments is None)
    except BrokenPipeError:
        # Whatever is still buffered has no reader: without this Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_PIPE_CLOSED
    except Exception as error:  # the shell's purpose: no exception leaves it
        if isinstance(error, FedpeftError) or (stopped := _interrupt_of(error, pressed)) is None:
            return _failed(error, given)
        return _stopped(by_sigterm=isinstance(stopped, _Terminated), whole_process=arguments is None)
    finally:
        _on(signal.SIGTERM, previous)
        if listens and signal.getsignal(signal.SIGINT) is listener:
            _on(signal.SIGINT, signal.default_int_handler)
    return code if isinstance(code, int) else EXIT_OK


def _settle_streams() -> None:
    """Writing fails for want of room or of a reader, never for a character that the terminal's encoding does not have.

    Nor where whoever started this closed a stream, as `>&-` and some services do.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _reset_verbosity() -> None:
    """As of a new process: tests run several commands in one."""
    if terminal := sys.modules.get("fedpeft.terminal"):
        terminal.set_verbosity()


def _stopped(*, by_sigterm: bool, whole_process: bool) -> int:
    """Says that the command was stopped; whoever presses Ctrl-C again does not wait for what still runs.

    Python joins the threads of pools when it exits, and a second interrupt in there is a traceback and an abort. All
    that must be durable is so before this is called.

    Args:
        by_sigterm: else by an interrupt.
        whole_process: nothing comes after the command. In a notebook the process and its signals are its own.
    """
    if by_sigterm:
        _say("terminated")
        return EXIT_TERMINATED
    if whole_process:
        with suppress(ValueError):  # not the main thread: nobody interrupts it
            signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    _say("interrupted")
    if whole_process and "ray" in sys.modules:  # its threads crash while Python takes itself apart
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(EXIT_INTERRUPTED)
    return EXIT_INTERRUPTED


def _interrupt_of(error: Exception, pressed: Sequence[float]) -> KeyboardInterrupt | None:
    """The interrupt behind an error, if any: a library that is being imported makes any error of it.

    An interrupt that was swallowed makes no interrupt of a bug of later. Libraries in C raise ImportError alone, with
    nothing behind it: that ends as an interrupt, and its traceback is shown all the same.
    """
    stopped = interrupt_behind(error)
    if stopped is None and pressed and isinstance(error, ImportError):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
        return KeyboardInterrupt()
    return stopped


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived; whatever keeps its work on Ctrl-C and says how to go on does so here too."""


def _failed(error: Exception, given: Sequence[str]) -> int:
    """Says what ended the command and returns its exit code.

    Args:
        given: the command line.
    """
    if isinstance(error, FedpeftError):
        _show_cause(error)
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, MemoryError):
        _say("error: Expected enough memory, found none left; use a smaller batch, model or number of workers.")
        return ResourceMissing.exit_code
    from fedpeft.cli.machine_errors import is_of_this_machine

    if isinstance(error, OSError) and is_of_this_machine(error, given):
        where = f" at {error.filename}" if error.filename else ""
        _say(f"error: The operating system refused this{where}: {error.strerror}; fix that and run it again.")
        return ResourceMissing.exit_code
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    _say(
        f"error: this is a bug in fedpeft {__version__} (Python {sys.version.split()[0]}): {type(error).__name__}. "
        "Please report it with the traceback above and the command line."
    )
    return EXIT_BUG


def _show_cause(error: FedpeftError) -> None:
    """Under ``-v`` where an error came from, for whoever reports it."""
    from fedpeft.terminal import verbosity

    if verbosity().verbose:
        import traceback

        traceback.print_exception(error, file=sys.stderr)


def _say(line: str) -> None:
    from fedpeft.terminal import printable

    click.echo(printable(line, keep_lines=True), err=True)


def _raise_terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _raise_interrupted(pressed: list[float], _signal: int, _frame: FrameType | None) -> None:
    """A key that is held down is one interrupt: what cleans up and says how to go on is not interrupted at once."""
    now = time.monotonic()
    if not pressed or now - pressed[-1] >= HELD_S:
        pressed.append(now)
        raise KeyboardInterrupt


def _on(number: signal.Signals, handler: object) -> object:
    """Sets a signal's handler where that is possible (the main thread) and returns the one before."""
    try:
        return signal.signal(number, handler)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
