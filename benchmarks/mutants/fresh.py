"""Mutants of what runs on import: each gets a fork of a process that has loaded the libraries and nothing of ours."""

import importlib
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from mutants.operators import Mutant, mutants_of, mutated

LIBRARIES = ("numpy", "hypothesis", "hypothesis.strategies", "cryptography.hazmat.primitives.asymmetric.ed25519",
             "cryptography.hazmat.primitives.ciphers.aead", "pydantic", "_pytest.fixtures")  # fmt: skip
MEMORY = 8 << 30


class Fresh:
    """The process to fork from; started before anything of fedpeft is loaded."""

    def __init__(self, root: Path, arguments: Sequence[str]) -> None:
        asked, self._asks = os.pipe()
        self._answers, answers = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._asks)
            os.close(self._answers)
            _serve(root, arguments, asked, answers)
        os.close(asked)
        os.close(answers)
        self._lines = os.fdopen(self._answers)

    def judged(self, mutant: Mutant, files: Sequence[str], seconds: float) -> dict[str, Any]:
        """Whether a test of these files notices, within this CPU time."""
        os.write(
            self._asks, (json.dumps({"key": mutant.key, "files": list(files), "seconds": seconds}) + "\n").encode()
        )
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        os.close(self._asks)
        os.waitpid(self._child, 0)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads one module changed."""

    root: Path
    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType | None:
        """The changed code; no cache of the unchanged one is looked at."""
        path = self.root / self.mutant.path
        return compile(mutated(path.read_text(), self.mutant), str(path), "exec")


class Finder:
    """Finds the mutant's module and no other."""

    def __init__(self, root: Path, mutant: Mutant) -> None:
        self._root, self._mutant = root, mutant
        self._name = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """The import system asks."""
        if name != self._name:
            return None
        file = self._root / self._mutant.path
        loader = Loader(name, str(file))
        loader.root, loader.mutant = self._root, self._mutant
        return importlib.util.spec_from_file_location(name, file, loader=loader)


class Failures:
    """Remembers the first failure."""

    first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's."""
        if report.failed and not self.first:
            self.first = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file's that cannot even be loaded."""
        if report.failed and not self.first:
            self.first = f"{report.nodeid} (load)"


def _serve(root: Path, arguments: Sequence[str], asked: int, answers: int) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    with os.fdopen(asked) as lines:
        for line in lines:
            request = json.loads(line)
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                _in_copy(root, arguments, request, answers)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
                died = {"status": "killed", "by": f"the process died of {os.WTERMSIG(status)}"}
                os.write(answers, (json.dumps(died) + "\n").encode())
    os._exit(0)


def _in_copy(root: Path, arguments: Sequence[str], request: dict[str, Any], answers: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # whose signal ends the process
    signal.setitimer(signal.ITIMER_REAL, 60 + 20 * request["seconds"])
    path = request["key"].partition("::")[0]
    mutant = next(one for one in mutants_of(root, path) if one.key == request["key"])
    sys.meta_path.insert(0, Finder(root, mutant))
    failures = Failures()
    code = pytest.main([*arguments, "-x", *request["files"]], plugins=[failures])
    answer = {"status": "killed" if code else "survived", "by": failures.first or f"exit {int(code)}"}
    os.write(answers, (json.dumps(answer) + "\n").encode())
    os.killpg(0, signal.SIGKILL)
