"""What a method or a rule does is asked of its record: nobody else compares its name."""

import ast
from pathlib import Path

import pytest

from fedpeft.catalogue import BY_NAME
from fedpeft.config.rules import RULES

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedpeft", "server/fedpeft_server", "clients/fedpeft_client", "simulations/fedpeft_sim")
OWN = ("fedpeft/catalogue/", "fedpeft/methods/", "fedpeft/config/rules.py", "fedpeft/aggregate/rules.py")
NAMES = {*RULES, *BY_NAME} - {"prompt"}  # a column of the data, too


def comparisons(text: str) -> list[int]:
    """The lines that compare something with the name of a method or a rule."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare | ast.MatchValue)
        and any(isinstance(part, ast.Constant) and part.value in NAMES for part in ast.walk(node))
    ]


@pytest.mark.parametrize(
    "text",
    ['rule == "lora-a2"', 'aggregate.rule != "nested"', 'x in ("fedsa", "ffa")', 'match rule:\n case "fedrot": pass'],
)
def test_a_comparison_with_a_name_is_found(text):
    assert comparisons(text)


def test_no_code_outside_a_rules_or_methods_own_file_compares_its_name():
    found = {
        f"{name}:{line}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not (name := path.relative_to(ROOT).as_posix()).startswith(OWN)
        for line in comparisons(path.read_text(encoding="utf-8"))
    }
    assert found == set()
