"""The documents name things that exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROLES = ("", "server", "clients", "simulations")
MODULE = re.compile(r"`((?:fedpeft|server|clients|simulations|docs|benchmarks)[\w/.-]*\.(?:py|md|toml))`")


DOCUMENTS = ["ARCHITECTURE.md", "README.md", "SECURITY.md", "docs/index.md", "docs/benchmarks.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text, folder = (ROOT / document).read_text(encoding="utf-8"), (ROOT / document).parent
    named = {ROOT / name for name in MODULE.findall(text)}
    named |= {folder / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert named, f"{document} names no file"
    assert sorted(str(path) for path in named if not path.exists()) == []


def test_the_tree_in_the_architecture_is_the_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = text.split("```")[1]
    named: dict[str, set[str]] = {}
    for line in tree.splitlines():
        if root := re.match(r"([\w/]+)/ ", line):
            package = named.setdefault(root[1], set())
        elif line.startswith("  ") and not line.startswith("   "):
            package |= set(re.findall(r"(\w+)/", line[:29]))
    assert set(named) == {"fedpeft", "server/fedpeft_server", "clients/fedpeft_client", "simulations/fedpeft_sim"}
    for package_name, rooms in named.items():
        folders = {path.parent.name for path in (ROOT / package_name).glob("*/__init__.py")}
        assert rooms == folders, package_name


CITED = re.compile(r"(tests/[\w/]+\.py)(?:::(test_\w+))?")


def test_every_test_that_is_cited_exists() -> None:
    """Documents and docstrings say which test shows what they claim; a renamed test must not leave a claim alone."""
    names = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
    names += [
        path for folder in ("fedpeft", "server", "clients", "simulations") for path in (ROOT / folder).rglob("*.py")
    ]
    names.remove(ROOT / "docs" / "style.md")  # its one path is an example
    missing = set()
    for path in names:
        for file, test in CITED.findall(path.read_text(encoding="utf-8")):
            there = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
            if not there or (test and f"def {test}(" not in there):
                missing.add(f"{path.relative_to(ROOT)}: {file}{'::' if test else ''}{test}")
    assert sorted(missing) == []


def test_no_file_cites_what_a_user_cannot_have() -> None:
    """Folders beside the repository, and unpublished notes: their words are in docs/, or they are not cited."""
    command = ["git", "ls-files", "*.py", "*.md", "*.toml"]
    listed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    outside = re.compile(
        r"/ \"shared\"|\.\./shared|/work/|\bresearch/\w+\.md|\bDESIGN section|\bDESIGN\.md|\bHOUSE\.md"
    )
    own = Path(__file__).relative_to(ROOT).as_posix()
    cited = {
        f"{name}:{number}"
        for name in listed.stdout.split()
        if name != own and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if outside.search(line)
    }
    assert cited == set()
