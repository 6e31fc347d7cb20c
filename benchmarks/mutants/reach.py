"""Which tests reach which lines: recorded once under coverage, a test file at a time, and kept."""

import ast
import gc
import hashlib
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

from mutants.operators import Mutant, function_digests, functions_of
from mutants.session import Session

TOO_SLOW = 10.0
"""A test that takes more CPU seconds than this under coverage is not used."""
SLOW = 0.5
WAITS_TOO_LONG = 60.0
"""Nor one that takes this long in all: it waits for another process, in which nothing is changed."""


class TooSlow(BaseException):
    """Interrupts a test."""


class Reach:
    """The recordings of these test files, from their folder.

    Attributes:
        seconds: CPU time of each test.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.seconds: dict[str, float] = {}
        self._lines: dict[tuple[str, str], list[tuple[str, dict[str, list[str]]]]] = defaultdict(list)
        for place in (_place(folder, file) for file in files):
            if not place.exists():  # a new file, of which nothing is recorded
                continue
            found = json.loads(place.read_text())
            names = list(found["seconds"])
            self.seconds |= found["seconds"]
            for path, functions in found["reached"].items():
                for name, one in functions.items():
                    lines = {offset: [names[i] for i in tests] for offset, tests in one["lines"].items()}
                    self._lines[path, name].append((one["digest"], lines))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that reach its line, its module's own and quick ones first; of its function if that has changed."""
        found: set[str] = set()
        for digest, lines in self._lines.get((mutant.path, mutant.function), ()):
            if digest == mutant.digest:
                found.update(lines.get(str(mutant.offset), ()))
            else:
                found.update(name for names in lines.values() for name in names)
        # A line that no test is seen on: inside an expression of several lines, or a fixture's.
        found = found or {
            name
            for _, lines in self._lines.get((mutant.path, mutant.function), ())
            for one in lines.values()
            for name in one
        }
        # The module's own tests first, which are likeliest to notice; slow ones last, or they leave no time for others.
        own = f"{mutant.own_tests}::"
        return sorted(
            found, key=lambda name: (self.seconds[name] > SLOW, not name.startswith(own), self.seconds[name], name)
        )

    def files_of(self, path: str) -> set[str]:
        """The test files that reach this module."""
        names = (
            name
            for (module, _), found in self._lines.items()
            if module == path
            for _, lines in found
            for one in lines.values()
            for name in one
        )
        return {name.partition("::")[0] for name in names}


def record(session: Session, root: Path, paths: Sequence[str], folder: Path, files: Sequence[str]) -> None:
    """Record those of the test files that have changed since, each in a process of its own."""
    caches = [one for one in gc.get_objects() if isinstance(one, _lru_cache_wrapper)]
    ours = [one for one in caches if str(getattr(one, "__module__", "")).startswith("fedpeft")]
    folder.mkdir(exist_ok=True)
    for file in files:
        digest = hashlib.sha256((root / file).read_bytes()).hexdigest()[:16]
        kept = _place(folder, file)
        if kept.exists() and json.loads(kept.read_text())["digest"] == digest:
            continue
        print(f"recording {file}", flush=True)
        child = os.fork()
        if child == 0:
            try:
                found = _recorded(session, root, paths, file, ours)
                kept.write_text(json.dumps({"digest": digest, **found}))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        if not kept.exists() or json.loads(kept.read_text())["digest"] != digest:
            raise SystemExit(f"Expected {file} to pass first; mend it.")


def _place(folder: Path, file: str) -> Path:
    return folder / (file.replace("/", "+") + ".json")


def _recorded(session: Session, root: Path, paths: Sequence[str], file: str, caches: Sequence[Any]) -> dict[str, Any]:
    import coverage

    seen = coverage.Coverage(data_file=None, include=[str(root / path) for path in paths], config_file=False)
    seconds: dict[str, float] = {}
    slow: list[str] = []
    last: list[Any] = ["", 0.0]

    def each(name: str) -> None:
        now = time.process_time()
        if last[0] and last[0] not in slow:
            seconds[last[0]] = now - last[1]
        last[:] = [name, now]
        for one in caches:
            one.cache_clear()  # the next test reaches the body again
        session.now(name)
        signal.setitimer(signal.ITIMER_PROF, TOO_SLOW)
        signal.setitimer(signal.ITIMER_REAL, WAITS_TOO_LONG)

    def over(signum: int, frame: object) -> None:
        slow.append(last[0])
        raise TooSlow

    def failed(name: str) -> None:
        if name in slow:
            return
        if TooSlow.__name__ not in session.reason:  # else it shares a fixture with a test that was interrupted
            print(f"Expected to pass before anything is changed, and is not used: {name}.", flush=True)
        slow.append(name)  # a busy machine leaves no time to some; without it only more can seem alive

    names = [name for name in session.items if name.partition("::")[0] == file]
    signal.signal(signal.SIGPROF, over)
    signal.signal(signal.SIGALRM, over)
    with _covered(seen), session.watched_by(seen.switch_context):
        session.run(names, failed, each)
        each("")
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    users = defaultdict(list)
    for name in names:
        for argname, definitions in session.items[name]._fixtureinfo.name2fixturedefs.items():  # type: ignore[attr-defined]
            for one in definitions:
                users[f"fixture {one.baseid}::{argname}"].append(name)
    numbers = {name: number for number, name in enumerate(seconds)}
    data = seen.get_data()
    found = {
        path: _by_function(root / path, data.contexts_by_lineno(str(root / path)), users, numbers) for path in paths
    }
    return {"seconds": seconds, "slow": slow, "reached": {path: one for path, one in found.items() if one}}


@contextmanager
def _covered(seen: Any) -> Iterator[None]:
    seen.start()
    yield
    seen.stop()


def _by_function(
    path: Path, lines: Mapping[int, Sequence[str]], users: Mapping[str, Sequence[str]], numbers: Mapping[str, int]
) -> dict[str, Any]:
    source = path.read_text()
    found = {}
    digests = function_digests(source)
    for name, first, last in functions_of(ast.parse(source).body, ""):
        tests = {}
        for line in range(first, last + 1):
            names = [one for context in lines.get(line, ()) for one in users.get(context, [context])]
            reaching = sorted({numbers[one] for one in names if one in numbers})
            if reaching:
                tests[line - first] = reaching
        if tests:
            found[name] = {"digest": digests[name], "lines": tests}
    return found
