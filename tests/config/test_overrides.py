"""--set changes a document before it is checked, and a wrong one is a problem like any other."""

import pytest

from fedpeft.config.overrides import apply_overrides


def applied(*overrides: str) -> dict[str, object]:
    document: dict[str, object] = {"run": {"name": "a"}, "device": [{"rank": 2}, {"rank": 4}]}
    problems, _ = apply_overrides(document, overrides)
    assert problems == []
    return document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("{a = 1}", {"a": 1}),
        ("cosine", "cosine"),
        ("hub:org/name@0123", "hub:org/name@0123"),
        ("a=b", "a=b"),
        ("two words", "two words"),
    ],
)
def test_a_value_is_toml_or_bare_text(text: str, value: object) -> None:
    assert applied(f"run.name={text}")["run"] == {"name": value}


def test_a_number_in_the_path_is_a_place_in_a_list() -> None:
    assert applied("device.1.rank=8")["device"] == [{"rank": 2}, {"rank": 8}]
    assert applied("device.0={rank = 1}")["device"] == [{"rank": 1}, {"rank": 4}]


def test_tables_that_are_not_there_are_made() -> None:
    assert applied("adapter.lora.rank=4")["adapter"] == {"lora": {"rank": 4}}


def test_the_last_of_two_wins() -> None:
    assert applied("run.name=b", "run.name=c")["run"] == {"name": "c"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds.count", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("a..b=3", "expected key.path=value"),
        ("a b=3", "expected key.path=value"),
        ("run.name=", "expected a TOML value"),
        ("run.name=[1", "expected a TOML value"),
        ('run.name="a', "expected a TOML value"),
        ("run.name=1\nseed=2", "expected one TOML value"),
        ("run.name.first=1", "expected a table at run.name, found a plain value"),
        ("device.2.rank=1", "expected a place from 0 to 1 in device"),
        ("device.first.rank=1", "expected a place from 0 to 1 in device"),
    ],
)
def test_a_wrong_override_is_a_problem_and_changes_nothing(override: str, message: str) -> None:
    document: dict[str, object] = {"run": {"name": "a"}, "device": [{"rank": 2}, {"rank": 4}]}
    (problem,), locations = apply_overrides(document, [override])
    assert message in str(problem)
    assert str(problem).startswith("--set ")
    assert locations == []
    assert document == {"run": {"name": "a"}, "device": [{"rank": 2}, {"rank": 4}]}
