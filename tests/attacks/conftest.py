"""A coordinator and its devices as processes, for strangers to attack."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "e2e" / "toy"))
from federation import ToyFederation, running
from strangers import many_descriptors


@pytest.fixture(scope="module", params=["three-ports", pytest.param("one-port", marks=pytest.mark.slow)])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """A coordinator that is up; no device yet."""
    many_descriptors()
    with running(tmp_path_factory.mktemp("federation"), one_port=request.param == "one-port") as made:
        yield made
