"""No flag without a reader: every field of run.toml is read somewhere outside fedpeft.config.

By name: an attribute ``x.field`` in one of the four packages. A field that only ``fedpeft.config.derived``
reads counts when the deriving function is itself used outside.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.config import RunConfig
from fedpeft.config.explain import sections_in

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedpeft", "server/fedpeft_server", "clients/fedpeft_client", "simulations/fedpeft_sim")
NOT_READ_YET: frozenset[str] = frozenset()
"""Keys that nothing reads yet. Must be empty when a session ends: delete the field, or read it."""


def fields(section: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """The key of every leaf, e.g. ``adapter.lora.rank``."""
    for name, field in section.model_fields.items():  # type: ignore[attr-defined]
        inner = list(sections_in(field.annotation))
        for one in inner:
            yield from fields(one, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def trees() -> Iterator[ast.Module]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if (ROOT / "fedpeft" / "config") not in path.parents:
                yield ast.parse(path.read_text(encoding="utf-8"))


def names_read(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def read_outside() -> set[str]:
    """Every attribute name read outside fedpeft.config, directly or through a derived number."""
    read: set[str] = set()
    used: set[str] = set()
    for tree in trees():
        read |= names_read(tree)
        used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    derived = ast.parse((ROOT / "fedpeft" / "config" / "derived.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in derived.body if isinstance(node, ast.FunctionDef)}
    wanted = [name for name in functions if name in used | read]
    while wanted:
        function = functions.pop(wanted.pop(), None)
        if function is not None:
            read |= names_read(function)
            wanted += [node.id for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in functions]
    return read


@pytest.fixture(scope="module")
def names() -> set[str]:
    return read_outside()


@pytest.mark.parametrize("key", fields())
def test_every_field_is_read_outside_the_configuration(key: str, names: set[str]) -> None:
    is_read = key.rsplit(".", 1)[-1] in names
    assert is_read != (key in NOT_READ_YET), f"{key}: {'take it off NOT_READ_YET' if is_read else 'nothing reads it'}"
