"""A tutorial's blocks as they stand, typed on machines that are folders here, and what they print held against it.

A line ``NAME$ fedpeft ...``, or ``python FILE``, is typed on the machine NAME: a folder of its own with a home of its
own. The lines below it are what the document shows of its output: three dots stand for anything, and a join token or a
code for the one that was printed, which later lines then mean. Numbers that neither the model nor the machine changes
(``COUNTED``, and all that a command of ``PLANS`` prints) are the printed ones; any other stands for any number. Every
command is a process, forked from one that has loaded torch. A command that runs on (``RUN_ON``) goes on beside the next
ones once it has printed what is shown.
"""

import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.fork_server import ForkedProcess
from tests.forked_commands import fork_command

HERE = Path(__file__).parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^(\w+)\$ +(.*)$")
CODE = r"[A-Z0-9]{4}-[A-Z0-9]{4}"
RUN = r"\d{8}T\d{6}Z-[\w-]+-[0-9a-f]{4}"
NAMED = re.compile(rf"fp1\.[\w.-]+|\b{CODE}\b")
"""What is another one in every run, and is used again."""
LOOKS = "coordinator status"
"""A command that looks at what goes on is typed until it shows what the document shows."""
RUN_ON = ("coordinator up", "client run", "client join")
"""Commands that may go on beside the next ones; ``join`` until whoever is asked has approved it."""
PLANS = ("privacy plan", "data check", "init")
"""Commands whose every number follows from what the document says."""
COUNTED = (
    r"\d+ of \d+ devices|devices \d+/\d+|\d+ devices online|at most epsilon [\d.]+|at delta [\d.]+\d|\bfor \d+ devices"
)
"""Numbers that follow from the document in any command's output."""
LEFT_OUT = re.compile(r"the method \w+ of fedpeft-lab 0.3 is left out: ")
Typed = Callable[[list[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a document.

    Args:
        machine: where it is typed.
        command: as it is typed, without a comment.
        shown: what the document shows of its output.
    """

    machine: str
    command: str
    shown: tuple[str, ...]


def steps(document: Path) -> Iterator[Step]:
    """Every command behind a prompt, in order."""
    for _, block in FENCE.findall(document.read_text(encoding="utf-8")):
        typed: list[tuple[str, str, list[str]]] = []
        for line in block.splitlines():
            if found := PROMPT.match(line):
                typed.append((found[1], shlex.join(shlex.split(found[2], comments=True)), []))
            elif typed:
                typed[-1][2].append(line)
        yield from (Step(machine, command, tuple(shown)) for machine, command, shown in typed)


def pattern(shown: tuple[str, ...], command: str = "") -> re.Pattern[str]:
    """What a command's output must match."""
    exact = any(_is(command, name) for name in PLANS)
    lines = [r"(?:.*\n)*?" if line.strip() == "..." else _line(line, exact=exact) for line in shown]
    return re.compile("".join(lines))


def _line(line: str, *, exact: bool) -> str:
    said = ""
    for part in re.split(
        rf"(\.\.\.|{RUN}|{COUNTED}|fp1\.[\w.-]+|\b{CODE}\b|(?<!\S)[-+]\d[\d.,]*|\d[\d.,]*|\s+)", line.rstrip()
    ):
        if part == "...":
            said += ".*"
        elif re.fullmatch(RUN, part):
            said += RUN
        elif part.startswith("fp1."):
            said += r"(fp1\.[\w-]+)"
        elif re.fullmatch(CODE, part):
            said += f"({CODE})"
        elif re.match(r"[-+]?\d", part) and not exact and not re.fullmatch(COUNTED, part):
            said += r"\d[\d.,]*" if part[0].isdigit() else r"[-+]\d[\d.,]*"
        else:
            said += r"\s+" if part.isspace() else re.escape(part)
    return said.removeprefix(r"\s+").join((r"\s*", r"\s*\n"))


@dataclass
class Machines:
    """Use ``typed`` for each step of a document; ``close`` ends what still runs.

    Args:
        path: below it each machine has its folder.
        instead: what the document says -> what is typed here.
        more: command -> further words, as ports that are free here.
        environment: further variables.
        installed: a folder of packages that are installed on every machine.
        within_s: of each command.
    """

    path: Path
    instead: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    installed: Path | None = None
    within_s: float = 200.0
    _known: dict[str, str] = field(default_factory=dict)
    _running: list[tuple[str, str, ForkedProcess, Path]] = field(default_factory=list)
    _typed: int = 0

    def folder(self, name: str) -> Path:
        """A machine's working directory; its home is ``home`` in it."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def typed(self, step: Step) -> str:
        """Its output, which is what the document shows.

        Raises:
            AssertionError: it is not, or the command failed, or it did not come in time.
        """
        self.finish(step.machine)
        shown = tuple(self._here(line) for line in step.shown)
        expected, end = pattern(shown, step.command), time.monotonic() + self.within_s
        while True:
            process, log = self._start(step)
            while process.poll() is None and time.monotonic() < end:
                if _runs_on(step) and expected.fullmatch(_printed(log)):
                    break
                threading.Event().wait(0.03)
            said = _printed(log)
            if found := expected.fullmatch(said):
                break
            looks_again = _is(step.command, LOOKS) and process.poll() == 0
            assert looks_again and time.monotonic() < end, f"{step}\nprinted:\n{said}\n{self.said()}"  # noqa: PT018
            threading.Event().wait(0.2)
        if _runs_on(step) and process.poll() is None:
            self._running.append((step.machine, step.command, process, log))
        else:
            assert process.wait(10) == 0, f"{step}\nprinted:\n{said}"
        names = [name for line in step.shown for name in NAMED.findall(line)]
        self._known |= dict(zip(names, found.groups(), strict=True))
        return said

    def said(self) -> str:
        """Everything that runs on, and the end of what it printed."""
        return "".join(f"{machine}$ {command}\n{log.read_text()[-3000:]}" for machine, command, _, log in self._running)

    def close(self) -> None:
        """Devices first."""
        for _, command, process, _ in sorted(self._running, key=lambda one: "coordinator" in one[1]):
            process.terminate()
            if "coordinator" in command:
                process.wait(30)
        for _, _, process, _ in self._running:
            process.wait(30)

    def finish(self, machine: str) -> None:
        """What this machine's owner waits for before they type on."""
        for one in list(self._running):
            if one[0] == machine and _is(one[1], "client join"):
                assert one[2].wait(60) == 0, one[3].read_text()
                self._running.remove(one)

    def _here(self, line: str) -> str:
        for document, here in (self.instead | self._known).items():
            line = line.replace(document, here)
        return line

    def _start(self, step: Step) -> tuple[ForkedProcess, Path]:
        folder = self.folder(step.machine)
        program, *words = shlex.split(self._here(step.command))
        for command, further in self.more.items():
            if _is(step.command, command):
                words += further
        self._typed += 1
        log = self.path / f"{self._typed:02}-{step.machine}.log"
        own = [HERE, *([self.installed] if self.installed else [])]
        path = os.pathsep.join([*map(str, own), *(entry for entry in sys.path if entry)])
        known = {**os.environ, "PYTHONPATH": path, "FEDPEFT_HOME": str(folder / "home"), "COLUMNS": "150"}
        known |= self.environment
        with log.open("wb") as file:
            arguments = [str(folder), program, *words]
            # What is installed is found when fedpeft is imported.
            server = "libraries" if self.installed else "commands"
            output = file.fileno()
            return fork_command("on_machine", arguments, environment=known, output=output, server=server), log


def _printed(log: Path) -> str:
    """Without log lines and what is said of plug-ins that tests/plugin has to be left out, all on standard error."""
    lines = log.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith('{"at"') and not LEFT_OUT.match(line))


def _runs_on(step: Step) -> bool:
    return any(_is(step.command, name) for name in RUN_ON)


def _is(command: str, name: str) -> bool:
    return f"{command} ".startswith(f"fedpeft {name} ")
