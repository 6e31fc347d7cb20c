"""The documents name things that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROLES = ("", "server", "clients", "simulations")
MODULE = re.compile(r"`((?:fedpeft|server|clients|simulations|docs|benchmarks)[\w/.-]*\.(?:py|md|toml))`")


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "README.md", "SECURITY.md"])
def test_every_file_that_a_document_names_exists(document: str) -> None:
    named = set(MODULE.findall((ROOT / document).read_text(encoding="utf-8")))
    assert named, f"{document} names no file"
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert missing == []


def test_the_tree_in_the_architecture_is_the_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = text.split("```")[1]
    named = set(re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE))
    there = {path.name for path in (ROOT / "fedpeft").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert named == there
