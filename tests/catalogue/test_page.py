"""One source for what a method is: the code that attaches it, the costs, the catalogue, and the page agree."""

import importlib.util
import typing
from pathlib import Path

import pytest

from fedpeft.catalogue import BY_NAME, METHODS, ROWS
from fedpeft.catalogue.compositions import COMPOSITIONS
from fedpeft.config.model import MethodName
from fedpeft.export.arithmetic import Rule

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)


def test_every_method_of_run_toml_is_in_the_catalogue():
    assert typing.get_args(MethodName) == tuple(method.name for method in METHODS)
    assert [*BY_NAME, "head"] == list(ROWS)


@pytest.mark.torch
def test_every_method_that_can_be_attached_is_in_the_catalogue_in_the_same_order():
    from fedpeft.methods.union import ATTACH

    assert list(ATTACH) == list(ROWS)


@pytest.mark.parametrize("document", tables.TABLES)
def test_the_generated_tables_are_those_of_the_code(document):
    assert tables.written(document) == (DOCS / document).read_text(encoding="utf-8"), "run `make docs`"


def test_every_rule_of_merge_is_a_composition():
    assert set(typing.get_args(Rule)) < set(COMPOSITIONS)


@pytest.mark.parametrize("name", ROWS)
def test_no_cell_is_empty_or_breaks_the_table(name):
    row = ROWS[name]
    for cell in (row.title, row.formula, row.paper, row.attaches, row.summed, row.example_dp, row.export):
        assert cell.strip()
        assert "|" not in cell
