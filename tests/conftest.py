"""What all tests share: how Hypothesis chooses its examples, and the models of the zoo, each built once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from fedpeft.base import BaseArtifact

# `make test` draws the same examples every time, so that a change is judged by the change. New ones are looked for by
# `make explore`, where a failure is a find and gets an @example of its own.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
# `make mutate` wants to know whether a test fails, not the smallest example.
settings.register_profile(
    "mutation", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)
settings.load_profile("repeatable")


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
