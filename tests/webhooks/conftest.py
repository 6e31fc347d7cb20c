"""An address that is told what happens."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.webhooks.address import Address, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e" / "toy"))


@pytest.fixture
def address() -> Iterator[Address]:
    made = Address()
    made.holds.set()
    server = serving(made)
    yield made
    made.holds.set()
    server.shutdown()
    server.server_close()
