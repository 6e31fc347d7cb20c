"""Whether tests notice a mutant: run in a forked copy of the session that has collected them.

In the copy the code of the mutated function takes the place of the old one, and only the tests run that reach its line,
quickest first, until one fails. So a mutant costs what its first failing test costs. What runs on import cannot be
changed so; ``mutants/fresh.py`` starts a fresh interpreter for it.
"""

import gc
import json
import os
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from mutants.operators import MODULE, Mutant, mutated
from mutants.reach import Reach
from mutants.session import Session

LEAST_SECONDS, TIMES = 4.0, 8.0
"""A test of a mutant is given this many CPU seconds, and this many times what it takes; then the mutant is dead."""
MOST_SECONDS = 15.0
"""Tests of a mutant are run in their order as long as they take no more CPU seconds than this in all."""
MEMORY = 8 << 30


class Functions:
    """Every function of the mutated modules that lives in this process, by where its code stands."""

    def __init__(self, root: Path) -> None:
        self._found: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(str(root / "fedpeft")):
                self._found[_place(one.__code__)].append(one)

    def change(self, root: Path, mutant: Mutant) -> bool:
        """Put the mutant's code into the living functions; whether that was possible."""
        path = root / mutant.path
        module = compile(mutated(path.read_text(), mutant), str(path), "exec")
        changed = False
        for code in _codes(module):
            if code.co_qualname == mutant.function or code.co_qualname.startswith(f"{mutant.function}.<locals>."):
                for function in self._found.get(_place(code), ()):
                    if len(function.__code__.co_freevars) != len(code.co_freevars):
                        return False
                    function.__code__ = code
                    changed = True
        return changed


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _codes(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _codes(one)


@contextmanager
def _limits(seconds: Mapping[str, float], dead: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """A limit to each test's time on the processor and off it: mutants loop and wait for ever."""
    now = [""]

    def over(signum: int, frame: FrameType | None) -> None:
        dead(f"{now[0]} (time)")

    signal.signal(signal.SIGPROF, over)
    signal.signal(signal.SIGALRM, over)

    def each(name: str) -> None:
        now[0] = name
        limit = LEAST_SECONDS + TIMES * seconds.get(name, 1.0)
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, 60 + 10 * limit)

    yield each


def judged(session: Session, functions: Functions, root: Path, mutant: Mutant, reach: Reach) -> dict[str, Any]:
    """Whether a test notices: ``status`` killed, survived, uncovered, or imported (needs a fresh interpreter)."""
    if mutant.function == MODULE:
        return {"status": "imported"}
    reaching = [name for name in reach.tests_of(mutant) if name in session.items]
    if not reaching:
        return {"status": "uncovered"}
    names = [name for name, sum_ in zip(reaching, accumulate(map(reach.seconds.__getitem__, reaching)), strict=True)
             if sum_ <= MOST_SECONDS]  # fmt: skip
    start = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_copy(session, functions, root, mutant, names, reach.seconds, writer)
    os.close(writer)
    with os.fdopen(reader) as answers:
        said = answers.read()
    _, status = os.waitpid(child, 0)
    result = json.loads(said) if said else {"status": "killed", "by": f"the process died of {status}"}
    return {
        **result,
        "tests": len(names),
        "not_run": len(reaching) - len(names),
        "seconds": round(time.monotonic() - start, 2),
    }


def _in_copy(
    session: Session,
    functions: Functions,
    root: Path,
    mutant: Mutant,
    names: Sequence[str],
    seconds: Mapping[str, float],
    writer: int,
) -> None:
    """The copy's whole life."""

    def end(**answer: object) -> None:
        os.write(writer, json.dumps(answer).encode())
        os.killpg(0, signal.SIGKILL)  # and whatever it has started

    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        if not functions.change(root, mutant):
            end(status="imported")

        def failed(name: str) -> None:
            end(status="killed", by=name)

        with _limits(seconds, failed) as each:
            session.run(names, failed, each)
        end(status="survived")
    except BaseException as problem:  # whatever it is, it is the mutant's doing
        end(status="killed", by=f"{type(problem).__name__} in the session")
