"""No module needs itself: imports make no circle, at the top of a module, inside a function or for types alone."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", "server", "clients", "simulations")
PACKAGES = ("fedpeft", "fedpeft_server", "fedpeft_client", "fedpeft_sim")


def modules() -> dict[str, Path]:
    """Module -> file."""
    found = {}
    for folder, package in zip(FOLDERS, PACKAGES, strict=True):
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def needed(text: str, known: set[str]) -> set[str]:
    """What a module imports anywhere, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & known) or ({node.module} & known)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
    return found


def order(graph: dict[str, set[str]]) -> list[str]:
    return list(TopologicalSorter(graph).static_order())


def test_the_modules_make_no_circle_and_an_import_inside_a_function_hides_none() -> None:
    """A lazy import is for a heavy package: with all of them at the top of their modules there is no circle either."""
    found = modules()
    order({n: needed(path.read_text(encoding="utf-8"), set(found)) - {n} for n, path in found.items()})


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        order({"a": needed("from b import f", {"a", "b"}), "b": needed("if X:\n    from a import g", {"a", "b"})})


def test_a_circle_inside_functions_is_found() -> None:
    known = {"a", "b", "c"}
    texts = {"a": "def f():\n    from b import g", "b": "import c", "c": "def h():\n    import a"}
    with pytest.raises(CycleError):
        order({name: needed(text, known) for name, text in texts.items()})


def test_the_benchmarks_make_no_circle() -> None:
    folder = ROOT / "benchmarks"
    found = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in sorted(folder.rglob("*.py"))}
    order({n: needed(path.read_text(encoding="utf-8"), set(found)) - {n} for n, path in found.items()})
