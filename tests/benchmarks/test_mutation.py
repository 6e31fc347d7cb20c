"""The driver of ``make mutate``: what it changes, what it leaves alone, and that a missing test shows."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from mutants.operators import mutants_of, mutated

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEST = """
from fedpeft.ring.box import Box

def test_it():
    assert Box().fits(2) and not Box().fits(4) and not Box().fits(3)
"""
SOURCE = '''"""A module."""

from dataclasses import dataclass

LIMIT = 3
Kind = int | str


@dataclass(frozen=True)
class Box:
    """A box."""

    size: int = 4

    def fits(self, count: int) -> bool:
        """Whether it does."""
        if count < 0:
            raise ValueError(f"Expected count={count} >= {0}.")
        return count + 1 <= self.size and count != LIMIT
'''


@pytest.fixture
def changes(tmp_path: Path) -> list[str]:
    (tmp_path / "box.py").write_text(SOURCE)
    return [one.key.partition("::")[2] for one in mutants_of(tmp_path, "box.py")]


@pytest.mark.parametrize(
    "change",
    [
        "<module>: 3 -> 4",
        "<module>: 4 -> 3",
        "Box.fits: count < 0 -> count <= 0",
        "Box.fits: count < 0 -> count >= 0",
        "Box.fits: count + 1 -> count - 1",
        "Box.fits: count + 1 <= self.size -> count + 1 < self.size",
        "Box.fits: count + 1 <= self.size and count != LIMIT -> count != LIMIT",
        "Box.fits: count + 1 <= self.size and count != LIMIT -> count + 1 <= self.size or count != LIMIT",
        "Box.fits: return count + 1 <= self.size and count != LIMIT -> return None",
        "Box.fits: raise ValueError(f'Expected count={count} >= {0}.') -> pass",
    ],
)
def test_operators_limits_constants_returns_and_refusals_are_changed(changes: list[str], change: str) -> None:
    assert change in changes


def test_types_decorators_and_messages_are_left_alone(changes: list[str]) -> None:
    assert not [one for one in changes if "frozen" in one or "int | str" in one or "True" in one]
    # The zero of the comparison is changed, that of the message is not.
    assert sum(one.startswith("Box.fits: 0 ->") for one in changes) == 2


def test_each_mutant_differs_from_the_source_in_one_place_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "box.py").write_text(SOURCE)
    found = mutants_of(tmp_path, "box.py")
    texts = {ast.unparse(mutated(SOURCE, one)) for one in found}
    assert len(texts) == len({one.key for one in found}) == len(found)
    assert ast.unparse(ast.parse(SOURCE)) not in texts


def test_a_key_stays_when_lines_above_the_function_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "box.py").write_text(SOURCE)
    before = {one.key: one.digest for one in mutants_of(tmp_path, "box.py") if one.function == "Box.fits"}
    (tmp_path / "box.py").write_text(SOURCE.replace("LIMIT = 3\n", "# Why three.\nLIMIT = 3\n"))
    after = {one.key: one.digest for one in mutants_of(tmp_path, "box.py") if one.function == "Box.fits"}
    assert before == after


def test_what_no_test_looks_at_survives_and_the_rest_is_killed_in_copies_and_fresh_interpreters(tmp_path: Path) -> None:
    """The driver whole, on a repository of one module and one test."""
    module, tests = tmp_path / "fedpeft" / "ring" / "box.py", tmp_path / "tests" / "ring" / "test_box.py"
    for file, text in (
        (module, SOURCE),
        (tmp_path / "fedpeft" / "__init__.py", ""),
        (tmp_path / "fedpeft" / "ring" / "__init__.py", ""),
        (tmp_path / "tests" / "conftest.py", (BENCHMARKS.parent / "tests" / "conftest.py").read_text()),
        (tests, TEST),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "mutants").mkdir()
    for script in (BENCHMARKS / "mutation.py", *(BENCHMARKS / "mutants").glob("*.py")):
        (tmp_path / "benchmarks" / script.relative_to(BENCHMARKS)).write_text(script.read_text())

    command = [sys.executable, "benchmarks/mutation.py", "--tests", "tests/ring"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "benchmarks" / "results" / "mutation.json").read_text())
    survivors = {key.partition("::")[2] for key in found["survivors"]}
    assert "Box.fits: count < 0 -> count <= 0" in survivors  # nobody asks for 0
    assert "Box.fits: raise ValueError(f'Expected count={count} >= {0}.') -> pass" in survivors
    assert not survivors & {
        "<module>: 3 -> 4",
        "Box.fits: count < 0 -> count >= 0",
        "Box.fits: count + 1 <= self.size and count != LIMIT -> count != LIMIT",
        "Box.fits: return count + 1 <= self.size and count != LIMIT -> return None",
    }
    assert found["counts"].keys() <= {"killed", "survived", "uncovered"}
