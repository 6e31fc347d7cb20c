"""Ticks are round and span the data; a chart draws what it is given and nothing that is not a number."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedpeft_server.report.charts import Series, dot_strip, line_chart, ticks

values = st.floats(-1e9, 1e9, allow_nan=False)


def show(value: float) -> str:
    return f"{value:g}"


@given(values, values)
@example(0.0, 2.2250738585e-313)
@example(1.0, 1.0 + 2.0**-52)
@example(-1e9, -1e9 + 1e-7)
def test_ticks_span_the_values_and_are_few(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    slack = 1e-6 * max(1e-300, high - low, abs(high) * 1e-6)
    assert 2 <= len(found) <= 8
    assert list(found) == sorted(set(found))
    assert found[0] <= low + slack
    assert found[-1] >= high - slack


def test_ticks_do_not_pass_a_ceiling() -> None:
    assert ticks(0.7, 0.97, 1.0)[-1] == 1.0
    assert ticks(0.9, 1.0, 1.0)[-1] == 1.0


@given(st.lists(st.none() | st.floats(), min_size=1, max_size=30))
def test_every_coordinate_is_a_finite_number(ys: list[float | None]) -> None:
    svg = str(line_chart([Series(points=list(enumerate(ys)))], label="x", show=show))
    finite = [y for y in ys if y is not None and abs(y) < 1e100]
    assert svg.count("<title>") == len(finite)
    assert not re.search(r"=\"-?(nan|inf)", svg)
    assert ("Nothing was recorded" in svg) == (not finite)


def test_a_label_is_escaped() -> None:
    svg = str(line_chart([Series(name="<b>", points=[(1, 1.0)])], label='"><script>', show=show))
    assert "<script>" not in svg
    assert "<b>" not in svg


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_strip_leaves_out_what_is_no_number(value: float | None) -> None:
    svg = str(dot_strip([("alone", value), ("federated", 0.5)], low=0.0, high=1.0, show=show))
    assert svg.count("<circle") == 1


def test_ticks_of_a_narrow_range_have_labels_of_their_own() -> None:
    svg = str(line_chart([Series(points=[(0, 1.1012), (1, 1.1034)])], label="x", show=lambda value: f"{value:.3g}"))
    labels = re.findall(r'class="end">([^<]*)<', svg)
    assert len(labels) >= 3
    assert len(set(labels)) == len(labels)
