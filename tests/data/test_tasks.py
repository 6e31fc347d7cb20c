import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.config.model import Task
from fedpeft.data import Convention, Records, detect, label_names, validate
from fedpeft.data.records import ProblemLog
from fedpeft.data.targets import LabelCheck, label_name
from fedpeft.data.tasks import CHECKS, inspect, messages_of
from fedpeft.errors import DataInvalid
from fedpeft.tasks import task_of

CLASSIFY = Task(kind="classify")
CAUSAL = Task(kind="causal-lm")
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
EXAMPLES = {
    Convention.TEXT_PAIR_LABEL: {"text": "a", "text_pair": "b", "label": "x"},
    Convention.TEXT_LABEL: {"text": "a", "label": "x"},
    Convention.WORDS_TAGS: {"words": ["a", "b"], "tags": ["O", "B-x"]},
    Convention.SOURCE_TARGET: {"source": "a", "target": "b"},
    Convention.PROMPT_CHOSEN_REJECTED: {"prompt": "q", "chosen": "a", "rejected": "b"},
    Convention.CHOSEN_REJECTED: {"chosen": "q a", "rejected": "q b"},
    Convention.PROMPT_COMPLETION_LABEL: {"prompt": "q", "completion": "a", "label": True},
    Convention.ANCHOR_POSITIVE_NEGATIVE: {"anchor": "q", "positive": "a", "negative": "b"},
    Convention.ANCHOR_POSITIVE: {"anchor": "q", "positive": "a"},
    Convention.MESSAGES: {"messages": TURNS},
    Convention.PROMPT_COMPLETION: {"prompt": "q", "completion": "a"},
    Convention.ALPACA: {"instruction": "do", "input": "", "output": "done"},
    Convention.TEXT: {"text": "a"},
}


def problems(rows: list[dict[str, object]], task: Task) -> list[tuple[str, str]]:
    with pytest.raises(DataInvalid) as caught:
        validate(Records.of(rows, name="f"), task)
    return [(problem.where, problem.found) for problem in caught.value.problems]


@pytest.mark.parametrize("convention", Convention)
def test_each_convention_is_detected_and_valid(convention: Convention) -> None:
    records = Records.of([EXAMPLES[convention]])
    assert detect(records) is convention
    assert validate(records, Task(kind=task_of(convention).name)) is convention


def test_the_task_decides_between_text_and_text_with_label() -> None:
    records = Records.of([{"text": "a", "label": "x"}])
    assert detect(records) is Convention.TEXT_LABEL
    assert detect(records, "classify") is Convention.TEXT_LABEL
    assert detect(records, "causal-lm") is Convention.TEXT


def test_unknown_columns_are_listed_with_what_would_fit() -> None:
    with pytest.raises(DataInvalid, match=r"text \+ label, found diagnosis, note.*--map") as caught:
        detect(Records.of([{"note": "a", "diagnosis": "b"}]), "classify")
    assert caught.value.exit_code == 3


def test_classification_without_a_label_column_is_refused() -> None:
    with pytest.raises(DataInvalid):
        validate(Records.of([{"text": "a"}]), CLASSIFY)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "an empty text"),
        (" \n\t", "an empty text"),
        (None, "nothing"),
        (3, "int 3"),
        ("\ud83d", "half a surrogate pair"),
    ],
)
def test_a_text_that_is_none_is_named_by_row(text: object, found: str) -> None:
    assert problems([{"text": "fine"}, {"text": text}], CAUSAL) == [("f:2: text", found)]


def test_a_row_that_lacks_the_column_is_named() -> None:
    assert problems([{"text": "fine"}, {"note": "b"}], CAUSAL) == [("f:2: text", "nothing")]


def test_both_halves_of_a_pair_are_checked() -> None:
    rows: list[dict[str, object]] = [{"prompt": "", "completion": None}]
    assert problems(rows, CAUSAL) == [("f:1: prompt", "an empty text"), ("f:1: completion", "nothing")]


@pytest.mark.parametrize("extra", [None, "", "more"])
def test_alpacas_input_is_optional(extra: str | None) -> None:
    validate(
        Records.of([{"instruction": "a", "input": extra, "output": "b"}, {"instruction": "a", "output": "b"}]), CAUSAL
    )


def test_alpacas_input_must_be_text() -> None:
    assert problems([{"instruction": "a", "input": 3, "output": "b"}], CAUSAL) == [("f:1: input", "int")]


@pytest.mark.parametrize(
    ("turns", "where", "found"),
    [
        ("hi", "f:1: messages", "str"),
        (None, "f:1: messages", "nothing"),
        ([], "f:1: messages", "none"),
        ([TURNS[0]], "f:1: messages", "none"),
        ([{"role": "assistant", "content": " "}], "f:1: messages[1]", "an empty text"),
        ([*TURNS, {"role": "assistant", "content": ""}], f"f:1: messages[{len(TURNS) + 1}]", "an empty text"),
        (
            [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}],
            "f:1: messages[2].tool_calls",
            "a call of a tool, which is not rendered",
        ),
        (
            [TURNS[0], {"role": "assistant", "content": "so", "function_call": {"name": "f"}}],
            "f:1: messages[2].function_call",
            "a call of a function, which is not rendered",
        ),
        ([TURNS[0], {**TURNS[1], "weight": 0}], "f:1: messages[2].weight", "one with weight 0"),
        ([{"role": "robot", "content": "a"}, TURNS[1]], "f:1: messages[1]", "{'role': 'robot', 'content': 'a'}"),
        ([{"role": "user"}, TURNS[1]], "f:1: messages[1]", "{'role': 'user'}"),
        ([TURNS[1], "ho"], "f:1: messages[2]", "'ho'"),
        ([TURNS[1], {"role": "user", "content": [3]}], "f:1: messages[2]", "{'role': 'user', 'content': [3]}"),
    ],
)
def test_messages_that_cannot_be_used_are_named(turns: object, where: str, found: str) -> None:
    assert problems([{"messages": turns}], CAUSAL) == [(where, found)]


def test_messages_of_a_row_hold_role_and_content_only() -> None:
    row = {"messages": [{**TURNS[1], "name": "x", "tool_calls": None}]}
    assert messages_of(row) == ({"role": "assistant", "content": "ho"},)


@pytest.mark.parametrize("label", [None, math.nan, math.inf, 0.5, "", "  ", [1], {"a": 1}])
def test_a_label_that_is_no_class_is_named(label: object) -> None:
    ((where, _),) = problems([{"text": "a", "label": "x"}, {"text": "b", "label": label}], CLASSIFY)
    assert where == "f:2: label"


@pytest.mark.parametrize(("first", "second"), [(1, "1"), ("1", 1), (True, 1), ("yes", True), (0, False)])
def test_labels_of_mixed_types_are_refused(first: object, second: object) -> None:
    ((where, _),) = problems([{"text": "a", "label": first}, {"text": "b", "label": second}], CLASSIFY)
    assert where == "f:2: label"


def test_a_label_outside_the_named_classes_is_refused() -> None:
    task = Task(kind="classify", labels=("x", "y"))
    assert problems([{"text": "a", "label": "x"}, {"text": "b", "label": "z"}], task) == [("f:2: label", "'z'")]


def test_a_whole_number_is_a_class_even_as_a_float() -> None:
    validate(Records.of([{"text": "a", "label": 1.0}, {"text": "b", "label": 0}]), CLASSIFY)
    assert [label_name(value) for value in (1, 1.0, True, " x ", -2)] == ["1", "1", "true", "x", "-2"]


def test_class_names_are_sorted_numbers_by_value() -> None:
    def names(values: list[object]) -> tuple[str, ...]:
        return label_names(Records.of([{"label": value} for value in values]))

    assert names(["b", "a", "b"]) == ("a", "b")
    assert names([10, 9, 2]) == ("2", "9", "10")
    assert names([True, False]) == ("false", "true")


def test_given_class_names_keep_their_order() -> None:
    assert label_names(Records.of([{"label": "a"}]), ("b", "a")) == ("b", "a")


@pytest.mark.parametrize("values", [[], ["a"], [None, math.nan]])
def test_fewer_than_two_classes_are_refused(values: list[object]) -> None:
    with pytest.raises(DataInvalid, match="at least 2 classes"):
        label_names(Records.of([{"label": value} for value in values]))


def test_inspection_tells_bad_rows_from_good_ones() -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "", "label": "y"}, {"text": "c", "label": None}]
    assert inspect(Records.of(rows), CLASSIFY).bad.tolist() == [False, True, True]


@given(st.lists(st.one_of(st.integers(), st.text(), st.floats(), st.booleans(), st.none())))
def test_label_order_does_not_depend_on_row_order(values: list[object]) -> None:
    forward, backward = Records.of([{"label": v} for v in values]), Records.of([{"label": v} for v in values[::-1]])
    try:
        names = label_names(forward)
    except DataInvalid:
        return
    assert names == label_names(backward)


ODD_TEXTS = st.sampled_from(["a", "b c", "", " ", "caf\u00e9", "\ud800", None, 3])
ODD_LABELS = st.sampled_from(["x", "y", "z", " x ", "", None, 1, 1.5, True, float("nan")])


@given(
    st.lists(st.fixed_dictionaries({"text": ODD_TEXTS, "label": ODD_LABELS}), min_size=1, max_size=30),
    st.sampled_from([(), ("x", "y")]),
)
def test_rows_not_looked_at_closely_are_good(rows: list[dict[str, object]], labels: tuple[str, ...]) -> None:
    records = Records.of(rows, name="f")
    found = inspect(records, Task(kind="classify", labels=labels))
    log, bad, check = ProblemLog(), set(), LabelCheck(labels)
    for i, (row, origin) in enumerate(zip(records.rows, records.origins, strict=True)):
        before = log.count
        CHECKS[Convention.TEXT_LABEL](row, origin, log)
        check.check(row.get("label"), f"{origin}: label", log)
        if log.count > before:
            bad.add(i)
    shown = [(problem.where, problem.expected) for problem in log.problems]
    assert [(problem.where, problem.expected) for problem in found.log.problems] == shown
    assert (found.log.count, set(np.flatnonzero(found.bad).tolist())) == (log.count, bad)
