"""Every public name of the product has a reader in it: what only its tests read is deleted, or moves to the tests.

A reader is any other place that says the name: code, a quoted annotation, an attribute. Where two things share a name,
one reader counts for both: the test finds what nobody can be reading, and proves of nothing that somebody does.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedpeft", "server/fedpeft_server", "clients/fedpeft_client", "simulations/fedpeft_sim")
BESIDE = ("benchmarks", "simulations/scenarios", "docs")  # programs of ours that use the packages
ANNOTATION = re.compile(r"[\w\[\]().,|\"' ]{1,100}")
FOR_TESTS = "fedpeft/testing/"
Defined = tuple[str, bool]
"""A name, and whether its definition itself says it once more (an assignment does)."""


def said_in(tree: ast.AST) -> Counter[str]:
    """How often a file says each name; ``__all__`` and prose do not count."""
    said: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            said[node.id] += 1
        elif isinstance(node, ast.Attribute):
            said[node.attr] += 1
        elif isinstance(node, ast.keyword) and node.arg:
            said[node.arg] += 1
        elif isinstance(node, ast.ImportFrom):
            said.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_expression(node.value):
            said.update(re.findall(r"\w+", node.value))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            said.subtract(entry.value for entry in ast.walk(node.value) if isinstance(entry, ast.Constant))
    return said


def is_expression(text: str) -> bool:
    """Whether a string may be an annotation, or the name of something that is looked up; prose is neither."""
    if not ANNOTATION.fullmatch(text):
        return False
    try:
        ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return False
    return True


def public_names(tree: ast.Module) -> Iterator[Defined]:
    """Functions, classes, constants and methods that anybody may use."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, True) for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ClassDef):
            yield node.name, False
            # What a foreign base class asks for is called by the library that it comes from.
            if all(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
                yield from ((part.name, False) for part in node.body if isinstance(part, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef) and not any(".command" in ast.unparse(d) for d in node.decorator_list):
            yield node.name, False


def unread(files: dict[str, str]) -> set[str]:
    """The public names that nobody says, as ``file: name``."""
    trees = {path: ast.parse(text) for path, text in files.items()}
    said: Counter[str] = Counter()
    for tree in trees.values():
        said.update(said_in(tree))
    return {
        f"{path}: {name}"
        for path, tree in trees.items()
        if not path.startswith((FOR_TESTS, *BESIDE))
        for name, once_more in public_names(tree)
        if not name.startswith("_") and said[name] <= once_more
    }


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a.py": "def f(): ..."}, {"a.py: f"}),
        ({"a.py": '__all__ = ["f"]\ndef f(): ...'}, {"a.py: f"}),
        ({"a.py": "LIMIT = 3"}, {"a.py: LIMIT"}),
        ({"a.py": "class C:\n def m(self): ..."}, {"a.py: C", "a.py: m"}),
        ({"a.py": "class C(Protocol):\n def m(self): ...\nx: C = y\nx.z"}, {"a.py: m"}),
        ({"a.py": "def f(): ...", "b.py": "from a import f"}, set()),
        ({"a.py": "LIMIT = 3\nprint(LIMIT)"}, set()),
        ({"a.py": "class C(click.Group):\n def list_commands(self): ...\nC()"}, set()),
        ({"a.py": "class C: ...", "benchmarks/b.py": 'def g(x: "C | None"): ...'}, set()),
        ({"a.py": '"""f does something."""\ndef f(): ...'}, {"a.py: f"}),
    ],
)
def test_a_name_without_a_reader_is_found(files: dict[str, str], found: set[str]) -> None:
    assert unread(files) == found


def test_every_public_name_has_a_reader_outside_the_tests() -> None:
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in (*PACKAGES, *BESIDE)
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert unread(files) == set()
