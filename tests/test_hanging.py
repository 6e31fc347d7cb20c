"""No test holds the session: one that no signal ends ends its process and is named, and of one that ends its process
the others hear nothing."""

from pathlib import Path

import pytest

pytest_plugins = "pytester"
CASES = """
import pytest

@pytest.mark.timeout(1)
def test_never_back():
    sum(range(10**14))

def test_other(): ...
"""


@pytest.fixture(autouse=True)
def tests_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def test_a_test_that_hangs_in_c_is_named_and_the_others_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACE_S", "0.2")
    pytester.makepyfile(test_cases=CASES)
    pytester.makeconftest("from tests.conftest import *")
    said = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n", "1", "-o", "timeout=60")
    said.assert_outcomes(passed=1, failed=1)
    said.stdout.fnmatch_lines(["*crashed while running 'test_cases.py::test_never_back'*"])
    assert "in test_never_back" in said.stderr.str()


CRASHING = """
import os, pytest

@pytest.mark.parametrize("case", range({cases}))
def test_case(case):
    if case == {crashes}:
        os._exit(130)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "crashes", [{4: 0}, {9: 3}, {10: 3}, {0: 0, 1: 3, 10: 2}], ids=["middle", "end", "last", "three"]
)
def test_a_worker_that_crashes_costs_one_test_and_holds_nobody(
    pytester: pytest.Pytester, crashes: dict[int, int], workers: str
) -> None:
    """Files of one and of many tests; pytest-xdist's own schedule waits for ever in most of these."""
    pytester.makeconftest("from tests.conftest import *")
    files, cases = 12, 4
    for number in range(files):
        lone = number % 3 == 2
        text = CRASHING.format(cases=1 if lone else cases, crashes=crashes.get(number, -1))
        pytester.makepyfile(**{f"test_{number:02}": text})
    options = ("-p", "no:cacheprovider", "-n", workers, "--dist", "loadfile", "--no-loadscope-reorder")
    said = pytester.runpytest_subprocess(*options, "-o", "timeout=60", timeout=120)
    alone = files // 3
    said.assert_outcomes(passed=alone + cases * (files - alone) - len(crashes), failed=len(crashes))
