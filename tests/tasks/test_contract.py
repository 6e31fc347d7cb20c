"""A task is one record: nothing else asks what it is called."""

import ast
import typing
from pathlib import Path

import pytest

from fedpeft.config.model import Task
from fedpeft.tasks import TASKS, Convention, Kind, task_of
from fedpeft.tasks.form import FORM_OF, PEFT_TASK_TYPES, Form

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("fedpeft", "server", "clients", "simulations") for path in (ROOT / folder).rglob("*.py")]
NAMES = {*TASKS, *typing.get_args(Form)}


def compared_names(source: str) -> list[int]:
    """Lines that compare something with a task's or a form's name, match on it, or look it up in a table."""
    found = []
    for node in ast.walk(ast.parse(source)):
        values: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
            values += [one for value in values for one in getattr(value, "elts", ())]
        elif isinstance(node, ast.MatchValue):
            values = [node.value]
        elif isinstance(node, ast.IfExp):
            values = [node.body, node.orelse]
        if any(isinstance(value, ast.Constant) and value.value in NAMES for value in values):
            found.append(node.lineno if hasattr(node, "lineno") else 0)
    return found


@pytest.mark.parametrize(
    "source",
    [
        'if task.kind == "classify": pass',
        'x = task.kind != "causal-lm"',
        'x = kind in ("classify", "other")',
        'form = "classify" if labels else "causal-lm"',
        'match kind:\n    case "classify":\n        pass',
    ],
)
def test_a_comparison_of_names_is_found(source: str) -> None:
    assert compared_names(source)


def test_no_other_module_compares_a_task_s_name() -> None:
    own = ROOT / "fedpeft" / "tasks"
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if own not in path.parents
        for line in compared_names(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"ask the task's record (fedpeft.tasks): {found}"


def test_the_configuration_takes_every_task_and_no_other() -> None:
    assert typing.get_args(Kind) == tuple(TASKS)
    for name in TASKS:
        assert Task(kind=name).record is TASKS[name]  # type: ignore[arg-type]


def test_every_convention_is_some_task_s() -> None:
    for convention in Convention:
        assert convention in task_of(convention).conventions


def test_every_form_has_one_name_at_peft() -> None:
    assert set(PEFT_TASK_TYPES) == set(typing.get_args(Form))
    assert {FORM_OF[kind]: kind for kind in PEFT_TASK_TYPES.values()} == dict(PEFT_TASK_TYPES)


def test_a_task_whose_outputs_have_names_adds_a_head() -> None:
    for record in TASKS.values():
        assert record.adds_head >= record.named_outputs
        assert bool(record.problem_type) <= record.adds_head
