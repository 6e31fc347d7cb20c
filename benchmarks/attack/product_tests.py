"""Attacks that are tests already: real devices and a patched coordinator in tests/attacks, run anew for the record."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from attack.common import Finding

__all__ = ["as_tested"]

ROOT = Path(__file__).resolve().parents[2]


def as_tested(learnt: str, *tests: str, matching: str = "") -> Callable[[bool], Finding]:
    """The finding of these test files: ``learnt`` if every one of their tests passes, and at least one ran.

    Args:
        learnt: what the attacker is left with.
        tests: files below tests/.
        matching: pytest's -k, to choose among their tests.
    """

    def attack(_quick: bool) -> Finding:
        chosen = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]
        command = [*chosen, *(["-k", matching] if matching else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        passed = re.search(r"(\d+) passed", done.stdout)
        count = int(passed[1]) if passed else 0
        holds = done.returncode == 0 and count > 0
        return Finding(
            learnt=learnt if holds else "the tests that refuse it fail",
            holds=holds,
            figures={"tests": list(tests), "matching": matching, "passed": count},
        )

    return attack
