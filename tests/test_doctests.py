"""Every example in a docstring is true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedpeft", "server/fedpeft_server", "clients/fedpeft_client", "simulations/fedpeft_sim")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
EXAMPLES = [path for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[next(i for i, part in enumerate(parts) if part.startswith("fedpeft")) :])


@pytest.mark.torch
@pytest.mark.parametrize("path", EXAMPLES, ids=module_of)
def test_every_example_of_a_docstring_is_true(path: Path) -> None:
    found = doctest.testmod(importlib.import_module(module_of(path)), report=True)
    assert found.attempted > 0, "an example that nothing runs"
    assert found.failed == 0
