"""One source for what a method is: the code that attaches it, the costs, the catalogue, and the page agree."""

import typing
from pathlib import Path

import pytest

from fedpeft.catalogue import BY_NAME, METHODS, ROWS
from fedpeft.catalogue.compositions import COMPOSITIONS, markdown_compositions
from fedpeft.catalogue.page import markdown
from fedpeft.config.model import MethodName
from fedpeft.export.arithmetic import Rule
from fedpeft.planner.sizes import markdown_sizes
from fedpeft.testing.shapes import DECODER, MINILM

SHAPES = {"MiniLM-L6": (MINILM, 3), "SmolLM2-135M": (DECODER, 0)}
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_every_method_of_run_toml_is_in_the_catalogue():
    assert typing.get_args(MethodName) == tuple(method.name for method in METHODS)
    assert [*BY_NAME, "head"] == list(ROWS)


@pytest.mark.torch
def test_every_method_that_can_be_attached_is_in_the_catalogue_in_the_same_order():
    from fedpeft.methods.union import ATTACH

    assert list(ATTACH) == list(ROWS)


def test_the_page_has_the_catalogues_table():
    assert markdown() in PAGE.read_text(encoding="utf-8"), "put the output of catalogue.markdown() into docs/methods.md"


def test_the_page_has_the_compositions_and_the_sizes():
    text = PAGE.read_text(encoding="utf-8")
    assert markdown_compositions() in text, "put the output of markdown_compositions() into docs/methods.md"
    assert markdown_sizes(SHAPES) in text, "put the output of markdown_sizes() into docs/methods.md"


def test_every_rule_of_merge_is_a_composition():
    assert set(typing.get_args(Rule)) < set(COMPOSITIONS)


@pytest.mark.parametrize("name", ROWS)
def test_no_cell_is_empty_or_breaks_the_table(name):
    row = ROWS[name]
    for cell in (row.title, row.formula, row.paper, row.attaches, row.summed, row.example_dp, row.export):
        assert cell.strip()
        assert "|" not in cell
