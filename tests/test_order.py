"""The tests of a file run in the file's order, however they are named."""

import pytest

pytest_plugins = "pytester"
FILE = """
import pytest

@pytest.fixture(scope="module", params=["x", "y"])
def shared(request):
    return request.param

def test_c(shared): ...
def test_a(shared): ...
@pytest.mark.parametrize("number", [2, 1])
def test_b(number): ...
"""


def test_tests_that_are_named_in_another_order_run_in_their_files(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_two=FILE, test_one=FILE)
    pytester.makeconftest(
        "import tests.conftest\npytest_collection_modifyitems = tests.conftest.pytest_collection_modifyitems"
    )
    named = ["test_two.py::test_a", "test_one.py::test_b", "test_two.py::test_c", "test_one.py::test_a"]
    run = pytester.inline_run("-p", "no:cacheprovider", *named)
    passed, _, _ = run.listoutcomes()
    order = [report.nodeid for report in passed]
    assert order == [
        "test_two.py::test_c[x]", "test_two.py::test_a[x]", "test_two.py::test_c[y]", "test_two.py::test_a[y]",
        "test_one.py::test_a[x]", "test_one.py::test_a[y]", "test_one.py::test_b[2]", "test_one.py::test_b[1]",
    ]  # fmt: skip
