"""Fixtures of the administration's tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from administration import Port, close, open_port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """One for a module's tests."""
    made = open_port(tmp_path_factory.mktemp("home") / "coordinator")
    yield made
    close(made)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Port]:
    """One of its own: strangers, streams and sessions begin at nothing."""
    made = open_port(tmp_path / "coordinator")
    yield made
    close(made)
