"""A test that no signal ends, since it never comes back to a line of Python, ends its process and is named."""

import pytest

pytest_plugins = "pytester"
CASES = """
import pytest

@pytest.mark.timeout(1)
def test_never_back():
    sum(range(10**14))

def test_other(): ...
"""


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
