"""What all tests share: Hypothesis and the collector settled, who goes first, what is made once for many."""

import faulthandler
import gc
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from xdist.remote import Producer

    from fedpeft.base import BaseArtifact
    from tests.schedule import Schedule

# `make test` draws the same examples every time, so that a change is judged by the change. New ones are looked for by
# `make explore`, where a failure is a find and gets an @example of its own.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
# `make mutate` wants to know whether a test fails, not the smallest example.
settings.register_profile(
    "mutation", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)
settings.load_profile("repeatable")


DRAW = os.environ.get("DRAW", "1")
"""Which cases `make test` draws of a test marked ``drawn``: `make test DRAW=2` draws others, `make slow` the rest."""

GRACE_S = float(os.environ.get("GRACE_S", "120"))
"""After a test's timeout, whose signal is heard between two lines of Python alone, its process is ended."""
STDERR = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], tuple[Path, BaseArtifact]]":
    """Folder as published and artifact of a row of the zoo. Both are shared: to be read."""

    @cache
    def made(name: str) -> "tuple[Path, BaseArtifact]":
        from fedpeft.base import build
        from fedpeft.testing.zoo import save_model

        folder = tmp_path_factory.mktemp("zoo")
        directory = save_model(name, folder / name)
        return directory, build(str(directory), quantize="none", store=folder / "store")

    return made


@pytest.fixture(scope="session")
def plugin_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed ``tests/plugin``; put it on PYTHONPATH of a process that needs it."""
    folder, copy = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(Path(__file__).parent / "plugin", copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder, copy]
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is captured here yet, and no worker started."""
    config.stash[STDERR] = os.dup(2)
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        from tests import forked_commands  # not where mutants are judged: it needs all of fedpeft

        forked_commands.offer()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """One that hangs outside of Python's lines once held CI for 90 minutes, and nobody learnt which."""
    mark = item.get_closest_marker("timeout")
    limited = item.config.pluginmanager.hasplugin("timeout")  # not where mutants are judged
    timeout_s = float(mark.args[0] if mark else item.config.getini("timeout") or 0) if limited else 0.0
    if not timeout_s:
        return (yield)
    faulthandler.dump_traceback_later(timeout_s + GRACE_S, exit=True, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Neither does a process stay that has no more tests: a thread, or a child that nobody waits for."""
    faulthandler.dump_traceback_later(300 + GRACE_S, exit=True, file=session.config.stash[STDERR])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "Schedule | None":
    """For ``--dist loadfile``."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.schedule import Schedule

    return Schedule(config, log)


LONG = (
    "e2e/test_simulate.py",
    "attacks/test_limits.py",
    "e2e/test_deployment.py",
    "e2e/test_local_up.py",
    "e2e/test_attach.py",
    "tutorials/test_three_machines.py",
    "tutorials/test_private.py",
    "tutorials/test_own_method.py",
    "e2e/test_disk_full.py",
    "e2e/test_backup.py",
    "admin/test_page.py",
    "attacks/test_strangers.py",
    "attacks/test_owners.py",
    "e2e/test_kill_nine.py",
    "attacks/test_insiders.py",
    "e2e/test_proxies.py",
    "e2e/test_private.py",
    "e2e/test_compositions.py",
    "api/test_plugins.py",
    "catalogue/test_contract.py",
    "privacy/test_per_example_gradients.py",
    "server/test_federation.py",
    "server/test_one_sum.py",
    "e2e/test_causal_lm.py",
    "fedpeft_sim/test_local_federation.py",
    "methods/test_every_method.py",
    "tuning/test_train.py",
    "using/test_serve.py",
)
"""Files that take longest, first: whoever begins one of them last, the others wait for (pytest-xdist's loadfile)."""


def pytest_collection(session: pytest.Session) -> None:
    """Nothing is thrown away while eight thousand tests and the libraries that they import are put together."""
    gc.disable()


def leave_to_slow(items: list[pytest.Item]) -> None:
    """Of a test's cases with equal arguments ``each``, all but ``count`` drawn ones become ``slow``.

    For cases that run the same code on different inputs. A fault in what only one case runs survives a draw without
    that case, so an argument that chooses code (a method, a rule, an engine) belongs into ``each``, or the cases are
    not drawn. ``always(**arguments)``, if given, says of a case that it is asked in every draw.
    """
    groups: dict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("drawn")
        if mark is not None and item.get_closest_marker("slow") is None:
            given = getattr(item, "callspec").params  # noqa: B009 - a test function's, and every case is one
            if not mark.kwargs.get("always", lambda **_: False)(**given):
                name = item.nodeid.partition("[")[0]
                groups[name, tuple(str(given[argument]) for argument in mark.kwargs.get("each", ()))].append(item)
    for group in groups.values():
        count = group[0].get_closest_marker("drawn").args[0]  # type: ignore[union-attr]
        for item in sorted(group, key=lambda item: sha256(f"{DRAW} {item.nodeid}".encode()).digest())[count:]:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``drawn`` cases are drawn; ``LONG`` goes first; files stay in their order, and the tests of each in the file's.

    In whatever order they are named: tests that share a deployment leave it to the next one, and `make faults`, which
    names them by the alphabet, revoked a device before the round that needs it.
    """
    leave_to_slow(items)
    root = Path(__file__).parent
    place = {root / name: number - len(LONG) for number, name in enumerate(LONG)}
    for item in items:
        place.setdefault(item.path, len(place))
    items.sort(key=lambda item: (place[item.path], item.location[1] or 0))


def pytest_collection_finish(session: pytest.Session) -> None:
    """They stay to the end: the collector need not look at them again and again."""
    gc.freeze()
    gc.enable()
