"""What fedpeft takes from Flower, and whether the Flower that Python finds has it; most of it is no public name.

``make newest`` runs it against the newest release: `python tests/flower/imported_names.py`, with that release first on
the path.
"""

import ast
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fedpeft", "server", "clients", "simulations")


def imported() -> dict[tuple[str, str], list[str]]:
    """(module, name) -> the files that import it; the name is empty where the module itself is imported."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(one for folder in FOLDERS for one in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "flwr" in text else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
                names = [(node.module or "", alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "flwr"]
            else:
                continue
            for name in names:
                found.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    return found


def missing() -> list[str]:
    """What is not there, with the files that need it."""
    gone = []
    for (module, name), files in imported().items():
        try:
            there = importlib.import_module(module)
            if name and not hasattr(there, name):
                importlib.import_module(f"{module}.{name}")
        except ImportError as error:
            gone.append(f"{module} {name}: {error}; {', '.join(files)}")
    return gone


if __name__ == "__main__":
    from importlib.metadata import version

    absent = missing()
    sys.stdout.write(f"flwr {version('flwr')}: {len(absent)} of {len(imported())} names are missing\n")
    sys.stdout.writelines(f"  {line}\n" for line in absent)
    sys.exit(1 if absent else 0)
