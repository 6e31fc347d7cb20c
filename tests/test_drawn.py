"""The marker ``drawn``: `make test` and `make slow` share a test's cases, and nothing is asked by neither."""

import pytest

from tests import conftest

pytest_plugins = "pytester"
CASES = """
import pytest

@pytest.mark.drawn(2, each=("method",), always=lambda method, **_: method == "lora")
@pytest.mark.parametrize("method", ["lora", "ia3", "dora"])
@pytest.mark.parametrize("base", range(8))
def test_it(method, base): ...

@pytest.mark.slow
@pytest.mark.drawn(1)
@pytest.mark.parametrize("base", range(3))
def test_slow(base): ...

def test_other(): ...
"""


def asked(pytester: pytest.Pytester, marked: str, *options: str) -> set[str]:
    """The cases that pytest runs."""
    pytester.makepyfile(test_cases=CASES)
    pytester.makeconftest(
        "import tests.conftest\npytest_collection_modifyitems = tests.conftest.pytest_collection_modifyitems"
    )
    passed, _, _ = pytester.inline_run("-p", "no:cacheprovider", "-m", marked, *options).listoutcomes()
    return {report.nodeid.partition("::")[2] for report in passed}


def test_of_each_argument_so_many_are_asked_and_all_of_what_is_always_asked(pytester: pytest.Pytester) -> None:
    quick = asked(pytester, "not slow")
    assert len([name for name in quick if "lora" in name]) == 8
    assert [len([name for name in quick if method in name]) for method in ("ia3", "dora")] == [2, 2]
    assert "test_other" in quick
    assert not [name for name in quick if "test_slow" in name]


def test_make_slow_asks_the_rest(pytester: pytest.Pytester) -> None:
    quick, slow, every = (asked(pytester, marked) for marked in ("not slow", "slow", "slow or not slow"))
    assert quick.isdisjoint(slow)
    assert quick | slow == every
    assert len(every) == 3 * 8 + 3 + 1


def test_another_draw_asks_others_and_the_same_one_the_same(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(pytester, "not slow")
    assert asked(pytester, "not slow") == first
    monkeypatch.setattr(conftest, "DRAW", "another")
    assert asked(pytester, "not slow") != first


def test_a_case_that_is_named_is_asked(pytester: pytest.Pytester) -> None:
    for base in (0, 3, 7):
        assert asked(pytester, "not slow", f"test_cases.py::test_it[{base}-ia3]") == {f"test_it[{base}-ia3]"}
