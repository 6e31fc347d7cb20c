"""Every way out of the command line has its exit code, and only a bug shows a traceback.

The shell is run as a user runs it: in a process of its own where time, modules and pipes are the point,
through ``main`` where only the answer is.
"""

import importlib
import io
import os
import pkgutil
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import pytest

import fedpeft.cli
from fedpeft import __version__
from fedpeft.cli import COMMANDS, main
from fedpeft.errors import (
    BudgetExhausted,
    ConfigInvalid,
    DataInvalid,
    FedpeftError,
    IntegrityFailed,
    NotEnrolled,
    Problem,
    QuorumMissed,
    ResourceMissing,
    RunFailed,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
HEAVY = ("torch", "flwr", "transformers", "pydantic", "numpy", "jinja2", "rich", "cryptography")
HELP_SECONDS = 0.3


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=60
    )


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException | Callable[[], None]) -> int:
    """The exit code of a command that raises ``error``, or does this."""

    @click.command()
    def failing() -> None:
        if isinstance(error, BaseException):
            raise error
        error()

    monkeypatch.setattr(fedpeft.cli.LazyGroup, "get_command", lambda *_: failing)
    return main(["runs"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_character_that_the_terminal_does_not_have_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """A bar of a report, a text of the data, the bytes of a file's name that are no UTF-8."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding))

    @click.command()
    def speaking() -> None:
        sys.stdout.write("24 \u2588 caf\xe9 \u201cnote\udcff.csv\u201d end\n")

    monkeypatch.setattr(fedpeft.cli.LazyGroup, "get_command", lambda *_: speaking)
    assert main(["runs"]) == 0
    assert screen.getvalue().rstrip().endswith(b"end")


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_stream_that_whoever_started_it_closed_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, closed: tuple[str, ...]
) -> None:
    for name in closed:
        monkeypatch.setattr(sys, name, None)

    @click.command()
    def speaking() -> None:
        sys.stdout.write("said")
        if not sys.stderr.isatty():
            raise DataInvalid("no")

    monkeypatch.setattr(fedpeft.cli.LazyGroup, "get_command", lambda *_: speaking)
    assert main(["runs"]) == DataInvalid.exit_code


@pytest.mark.parametrize("option", ["--help", "--version", "-h"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    answer = run(
        f"import sys; from fedpeft.cli import main; code = main([{option!r}]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    assert answer.returncode == 0
    assert answer.stderr == "[]\n"
    assert ("Commands:" in answer.stdout) or (__version__ in answer.stdout)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_answer_at_once(option: str) -> None:
    code = f"import sys; from fedpeft.cli import main; sys.exit(main([{option!r}]))"
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < HELP_SECONDS


def test_importing_a_command_loads_nothing_heavy() -> None:
    for name in COMMANDS:
        answer = run(f"import sys, fedpeft.cli.{name}; print([name for name in {HEAVY!r} if name in sys.modules])")
        assert (name, answer.stdout, answer.stderr) == (name, "[]\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(importlib.import_module(f"fedpeft.cli.{name}").command, click.Command)
    assert main([name, "--help"]) == 0
    assert f"Usage: fedpeft {name}" in capsys.readouterr().out


def test_every_command_module_is_listed() -> None:
    modules = {module.name for module in pkgutil.iter_modules(fedpeft.cli.__path__)}
    assert {name for name in modules if hasattr(importlib.import_module(f"fedpeft.cli.{name}"), "command")} == set(
        COMMANDS
    )


def test_a_command_imports_no_other_command() -> None:
    folder = Path(fedpeft.cli.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).with_suffix("").parts[0]
        imported = set(re.findall(r"fedpeft\.cli\.(\w+)", path.read_text(encoding="utf-8")))
        assert (path.name, imported & set(COMMANDS) - {own}) == (path.name, set())


def test_an_unknown_command_is_a_usage_error_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulat"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean `fedpeft simulate`?" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--nonsense"], ["config", "validate"], ["runs", "nonsense"]])
def test_wrong_usage_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (RunFailed, 1),
        (ConfigInvalid, 3),
        (DataInvalid, 3),
        (NotEnrolled, 4),
        (QuorumMissed, 5),
        (IntegrityFailed, 6),
        (BudgetExhausted, 7),
        (ResourceMissing, 8),
    ],
)
def test_a_users_mistake_is_told_without_a_traceback(
    kind: type[FedpeftError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(where="x", expected="a", found="b")
    assert ends_with(monkeypatch, kind("Expected a, found b.", problems=[problem])) == code
    printed = capsys.readouterr()
    assert printed.err == "error: Expected a, found b.\n  x: expected a, found b\n"
    assert printed.out == ""


def test_a_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(monkeypatch, KeyError("k")) == 70
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert f"this is a bug in fedpeft {__version__}" in error


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/runs"), OSError(28, "No space left on device")]
)
def test_what_the_machine_refuses_is_no_bug(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, error) == 8
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert str(error.strerror) in printed


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends_with(monkeypatch, MemoryError()) == 8


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(monkeypatch, KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupted_command_leaves_the_process_of_its_caller_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook, or a test: with Ray loaded it ended there and then, and on the next interrupt in any case."""
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    before = signal.getsignal(signal.SIGINT)
    assert ends_with(monkeypatch, KeyboardInterrupt()) == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_of_which_an_import_makes_another_error_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def importing() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None  # as extension modules do

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert ends_with(monkeypatch, importing) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_that_was_swallowed_hides_no_bug_of_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallows() -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        raise KeyError("a bug much later")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert ends_with(monkeypatch, swallows) == 70
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "a bug much later" in capsys.readouterr().err


def test_a_command_leaves_the_handlers_of_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["--help"]) == 0
    assert ends_with(monkeypatch, KeyError("k")) == 70
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_termination_at_a_question_ends_with_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asking() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("click.termui.visible_prompt_func", lambda _: os.kill(os.getpid(), signal.SIGTERM))
            click.confirm("sure?")

    monkeypatch.setattr(fedpeft.cli.LazyGroup, "get_command", lambda *_: click.command()(asking))
    assert main(["runs"]) == 143
    assert "terminated" in capsys.readouterr().err


def test_a_termination_ends_with_143_after_cleaning_up(tmp_path: Path) -> None:
    marker = tmp_path / "cleaned"
    code = f"""
import sys, time, pathlib, click, fedpeft.cli as shell
@click.command()
def waiting():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        pathlib.Path({str(marker)!r}).touch()
shell.LazyGroup.get_command = lambda *_: waiting
sys.exit(shell.main(["runs"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (143, "terminated\n")
    assert marker.exists()


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from fedpeft.cli import main; sys.exit(main(['config', 'schema']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), error) == (141, "")
