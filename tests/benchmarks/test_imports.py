"""A benchmark's imports lead somewhere: nobody runs one for weeks, while what it imports is moved."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
FOLDER = TREE / "benchmarks"
ROOTS = (
    FOLDER,
    TREE / "tests/e2e/toy",
    TREE / "tests/attacks",
    TREE,
    *(TREE / name for name in ("server", "clients", "simulations")),
)
ABSENT = {"bitsandbytes", "nvflare"}  # whoever lacks it is told by the benchmark itself
FILES = sorted(FOLDER.rglob("*.py"))


def imported_by(path: Path) -> set[tuple[str, str]]:
    """(module, name) of each import from a module of this repository; an empty name is the module itself."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def names_in(source: Path) -> set[str]:
    """What a module defines or imports, at any depth."""
    tree, names = ast.parse(source.read_text(encoding="utf-8")), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def source_of(module: str) -> Path | None:
    """The file of a module of this repository; None: it is somebody else's."""
    path = module.replace(".", "/")
    tried = (root / name for root in ROOTS for name in (f"{path}.py", f"{path}/__init__.py"))
    return next((one for one in tried if one.exists()), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    for module, name in sorted(one for one in imported_by(path) if one[0].partition(".")[0] not in ABSENT):
        source = source_of(module)
        if source is not None:
            known = not name or name in names_in(source) or source_of(f"{module}.{name}") is not None
            assert known, f"{module} has no {name}"
        elif not any((root / module.partition(".")[0]).is_dir() for root in ROOTS):
            assert importlib.util.find_spec(module.partition(".")[0]) is not None, f"no module {module}"
        else:
            assert any((root / module.replace(".", "/")).is_dir() for root in ROOTS), f"no module {module}"


def test_those_that_start_a_deployment_find_what_they_import_by_themselves(tmp_path: Path) -> None:
    """As typed: nothing but the installed packages is on the path, and the script's own folder."""
    starting = [path for path in FILES if '"toy"' in path.read_text(encoding="utf-8")]
    assert len(starting) >= 5
    program = "import runpy, sys\nsys.path.insert(0, sys.argv[1])\nrunpy.run_path(sys.argv[2], run_name='imported')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    processes = {
        path: subprocess.Popen(
            [sys.executable, "-c", program, str(FOLDER), str(path)],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path in starting
    }
    for path, process in processes.items():
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, f"{path.name}: {said[-800:]}"
