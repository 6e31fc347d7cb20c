"""requirements.lock: every pin of constraints.txt with hashes, and all that pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {canonical(found[1]): found[2] for line in lines if (found := PIN.match(line))}


def test_the_lock_and_the_constraints_name_one_version() -> None:
    """`make lock` makes the one from the other: whoever changes a pin runs it."""
    locked, constrained = pins(ROOT / "requirements.lock"), pins(ROOT / "constraints.txt")
    differing = {name: (version, locked[name]) for name, version in constrained.items() if name in locked}
    assert {name: both for name, both in differing.items() if both[0] != both[1]} == {}
    assert len(differing) > 100


def test_the_lock_has_all_that_is_asked_for_and_a_hash_of_each() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"]]
    asked += [one for name, extra in project["optional-dependencies"].items() if name != "docs" for one in extra]
    names = {canonical(re.split(r"[<>=\[; ]", one)[0]) for one in asked}
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert names - pins(ROOT / "requirements.lock").keys() == set()
    entries = re.split(r"^(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    assert [entry.split()[0] for entry in entries if entry.strip() and "--hash=sha256:" not in entry] == []
