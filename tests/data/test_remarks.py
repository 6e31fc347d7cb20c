import pytest

from fedpeft.config.model import Task
from fedpeft.data import Records
from fedpeft.data.check import check
from fedpeft.data.remarks import label_remarks

TURNS = [{"role": "user", "content": "hi", "name": "ann"}, {"role": "assistant", "content": "ho", "id": 3}]


def said(rows: list[dict[str, object]], kind: str = "classify") -> str:
    task = Task.model_validate({"kind": kind})
    return "\n".join(check(Records.of(rows), task, holdout=0.5, seed=0).remarks)


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "NULL", "NA", "n/a", "-", "?", "<NA>", "missing"])
def test_a_class_that_looks_like_a_missing_value_is_named(name: str) -> None:
    assert name in said([{"text": "a", "label": "x"}, {"text": "b", "label": name}])


@pytest.mark.parametrize(
    ("one", "other"),
    [("Positive", "positive"), ("1", "1.0"), ("01", "1"), ("caf\u00e9", "cafe\u0301"), ("a b", "a  b")],
)
def test_one_class_in_two_spellings_is_named(one: str, other: str) -> None:
    assert "alike" in "".join(label_remarks({one: 3, other: 2}))


@pytest.mark.parametrize(
    "labels", [{"yes": 1, "no": 2}, {"1": 1, "2": 1}, {"unknown": 4, "known": 3}, {"inf": 1, "a": 1}]
)
def test_plain_classes_are_not_remarked_on(labels: dict[str, int]) -> None:
    assert label_remarks(labels) == []


def test_columns_and_keys_that_nobody_reads_are_named() -> None:
    remarks = said([{"messages": TURNS, "tools": ["t"], "text": "left"}], "causal-lm")
    assert "tools, text" in remarks
    assert "name (1), id (1)" in remarks


@pytest.mark.parametrize("text", ["nan", "None", "NULL", " n/a "])
def test_a_text_that_looks_like_a_missing_value_is_named(text: str) -> None:
    assert f"{text} (2)" in said(
        [{"text": text, "label": "x"}, {"text": text, "label": "y"}, {"text": "a", "label": "y"}]
    )
    assert "missing" in said([{"prompt": "a", "completion": text}], "causal-lm")
    assert said([{"prompt": "is it none", "completion": "nan is a number"}], "causal-lm") == ""
