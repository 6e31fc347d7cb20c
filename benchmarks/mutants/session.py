"""One pytest session that has collected everything: it hands the tests over instead of running them."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


class Session:
    """A pytest plugin that hands the collected tests to ``work`` instead of running them."""

    def __init__(self, work: Callable[["Session"], None]) -> None:
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self._failed: Callable[[str], None] | None = None
        self._watch: Callable[[str], Any] | None = None
        self._current = ""
        self.reason = ""
        """Why the last failed test failed."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of the tests: the work."""
        gc.unfreeze()  # tests/conftest.py hides what was collected from the collector, and from whoever looks for it
        self.items = {item.nodeid: item for item in session.items}
        if not session.testsfailed:
            self._work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure ends the copy."""
        if report.failed and self._failed:
            self.reason = report.longreprtext
            self._failed(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """What a shared fixture reaches is reached by every test that uses it."""
        if self._watch is None or fixturedef.scope == "function":
            return (yield)
        self._watch(f"fixture {fixturedef.baseid}::{fixturedef.argname}")
        try:
            return (yield)
        finally:
            self._watch(self._current)

    def run(self, names: Sequence[str], failed: Callable[[str], None], each: Callable[[str], None]) -> None:
        """Run these tests in this process."""
        self._failed = failed
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None], strict=True):
            each(item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    @contextmanager
    def watched_by(self, watch: Callable[[str], Any]) -> Iterator[None]:
        """Within: tell ``watch`` whose code runs, a test's or a shared fixture's (``fixture FOLDER::NAME``)."""
        self._watch = watch
        yield
        self._watch = None

    def now(self, name: str) -> None:
        """The test that begins."""
        self._current = name
        if self._watch:
            self._watch(name)
