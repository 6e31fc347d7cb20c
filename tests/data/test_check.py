import json

import pytest

from fedpeft.config.model import Task
from fedpeft.data import Convention, Records
from fedpeft.data.check import DataReport, Part, check
from fedpeft.data.whitespace import WhitespaceTokenizer
from fedpeft.errors import DataInvalid


def report(rows: list[dict[str, object]], kind: str = "classify", max_length: int = 8) -> DataReport:
    task = Task.model_validate({"kind": kind, "max_length": max_length})
    return check(Records.of(rows, name="notes.csv"), task, holdout=0.25, seed=0)


ROWS: list[dict[str, object]] = [
    {"text": "one two three", "label": "x"},
    {"text": "ONE two  three", "label": "y"},
    {"text": "four", "label": "x"},
    {"text": "w " * 12, "label": "x"},
    {"text": "", "label": "x"},
    {"text": None, "label": "y"},
    {"text": "seven", "label": None},
]


def test_the_figures_of_a_classification_set() -> None:
    found = report(ROWS)
    assert (found.convention, found.kind, found.files) == (Convention.TEXT_LABEL, "classify", ("notes.csv",))
    assert (found.examples, found.usable, found.empties) == (7, 4, 2)
    assert (found.duplicates, found.contradictions) == (1, 1)
    assert found.labels == {"x": 3, "y": 1}
    assert found.problem_count == 3
    assert [problem.where for problem in found.problems] == [
        "notes.csv:5: text",
        "notes.csv:6: text",
        "notes.csv:7: label",
    ]
    assert (found.split.train + found.split.held_out, found.split.shared) == (4, 0)


def test_lengths_are_words_without_a_tokenizer_and_truncation_is_counted() -> None:
    lengths = report(ROWS).lengths
    assert lengths is not None
    assert (lengths.tokenizer, lengths.approximate, lengths.max_length, lengths.truncated) == ("words", True, 8, 1)
    assert lengths.percentiles == {50: 3, 90: 12, 95: 12, 99: 12, 100: 12}


def test_lengths_of_a_named_tokenizer_are_not_called_approximate() -> None:
    task = Task(kind="classify")
    found = check(Records.of(ROWS[:3]), task, holdout=0.5, seed=0, tokenizer=("base", WhitespaceTokenizer()))
    assert found.lengths is not None
    assert (found.lengths.tokenizer, found.lengths.approximate) == ("base", False)


def test_three_examples_show_what_is_trained_on() -> None:
    rows: list[dict[str, object]] = [{"prompt": f"q{i} ", "completion": f"a{i}"} for i in range(9)]
    found = report(rows, "causal-lm")
    assert [example.origin for example in found.rendered] == ["notes.csv:1", "notes.csv:5", "notes.csv:9"]
    assert found.rendered[1].parts == (Part(text="q4 ", trained=False), Part(text="a4", trained=True))
    assert found.labels == {}


def test_every_answer_of_a_conversation_is_shown_as_trained() -> None:
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    (example,) = report([{"messages": turns}], "causal-lm").rendered
    assert [part.text for part in example.parts if part.trained] == ["a</s>\n", "a</s>\n"]
    assert "".join(part.text for part in example.parts).startswith("user: u\nassistant: a</s>\n")


def test_a_set_without_a_usable_row_still_has_a_report() -> None:
    found = report([{"text": "", "label": "x"}])
    assert (found.usable, found.rendered, found.lengths, found.problem_count) == (0, (), None, 1)


def test_a_task_that_the_columns_do_not_fit_is_refused() -> None:
    with pytest.raises(DataInvalid):
        report([{"text": "a"}], "classify")


def test_the_json_form_is_plain_and_versioned() -> None:
    parsed = json.loads(json.dumps(report(ROWS).as_json()))
    assert parsed["schema_version"] == 1
    assert parsed["convention"] == "text+label"
    assert parsed["lengths"]["percentiles"]["100"] == 12
