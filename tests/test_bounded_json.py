import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.bounded_json import JsonLimits, JsonRefused, loads

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_whatever_json_writes_within_the_limits_comes_back(value: object) -> None:
    assert loads(json.dumps(value)) == value
    assert loads(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_text_raises_anything_else_than_a_refusal(text: str | bytes) -> None:
    try:
        value = loads(text)
    except JsonRefused:
        return
    json.dumps(value, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1" + "0" * 3000, "an integer of 3001 digits"),
        ("-" + "9" * 20, "an integer of 20 digits"),
        ("9" * 5000, "5000 digits"),
        ("[1e999]", "range of a double"),
        ("-1e999", "range of a double"),
        ("NaN", "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("[" * 100_000, "nesting too deep"),
        ("[" * 33 + "]" * 33, "nesting too deep"),
        ('{"a":' * 40 + "1" + "}" * 40, "nesting too deep"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('"\\ud83d"', "surrogate"),
        ('{"\\udead": 1}', "surrogate"),
        (b'"\xff"', "not UTF-8"),
        ("{} {}", "more after the first value"),
        ('{"a": 1', "end too early"),
        ("", "end too early"),
        ('{"a": 1,\n b}', "line 2"),
    ],
)
def test_what_would_break_a_caller_later_is_refused_at_the_door(text: str | bytes, found: str) -> None:
    with pytest.raises(JsonRefused, match=found):
        loads(text)


def test_a_refusal_is_a_value_error_so_that_no_door_misses_it() -> None:
    assert issubclass(JsonRefused, ValueError)


def test_each_limit_is_the_callers() -> None:
    assert loads("[" * 3 + "]" * 3, JsonLimits(max_depth=3)) == [[[]]]
    with pytest.raises(JsonRefused, match="nesting"):
        loads("[" * 3 + "]" * 3, JsonLimits(max_depth=2))
    with pytest.raises(JsonRefused, match="more than 4 bytes"):
        loads("12345", JsonLimits(max_bytes=4))
    assert loads("1" * 100, JsonLimits(max_digits=100)) == int("1" * 100)
    assert loads('"\\ud83d"', JsonLimits(surrogates=True)) == "\ud83d"


def test_a_byte_order_mark_is_no_part_of_the_value() -> None:
    assert loads(b"\xef\xbb\xbf[1]") == [1]
    assert loads("\ufeff[1]") == [1]


def test_the_recursion_limit_of_the_caller_does_not_leak() -> None:
    def deeper(left: int) -> object:
        return loads("[[[[[[[[[[]]]]]]]]]]") if left == 0 else deeper(left - 1)

    assert deeper(sys.getrecursionlimit() // 4)
