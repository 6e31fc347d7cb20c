import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.data.packed import LineNumbers, PackedColumn, PackedOrigins, PackedRows, paged
from fedpeft.data.packed import column as column_file
from fedpeft.data.records import MISSING, Records

TEXTS = st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3), max_leaves=8
)
VALUES = st.lists(TEXTS | JSON | st.just(MISSING) | st.binary(max_size=8) | st.dates(), max_size=40)


def column(values: list[object], *, batch: int = 7) -> PackedColumn:
    made = PackedColumn()
    for start in range(0, len(values), batch):
        made.extend(values[start : start + batch])
    return made


@given(VALUES, st.integers(1, 50))
def test_a_column_gives_back_what_it_was_given_wherever_it_lies(values: list[object], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_file, "MEMORY_BYTES", limit)  # most goes to the temporary file
        patch.setattr(paged, "PAGE_BYTES", 8)
        made = column(values)
        assert [made[i] for i in range(len(made))] == values
        assert made.window(0, len(values)) == values
        middle = len(values) // 2
        assert made.window(middle, len(values)) == values[middle:]


@given(st.lists(st.fixed_dictionaries({}, optional={"a": TEXTS, "b": JSON}), max_size=60), st.data())
def test_a_selection_of_rows_is_what_a_list_would_give(rows: list[dict[str, object]], data: st.DataObject) -> None:
    columns = {name: column([row.get(name, MISSING) for row in rows]) for name in ("a", "b")}
    whole = PackedRows(columns, range(len(rows)))
    assert list(whole) == rows
    chosen = data.draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=30)) if rows else []
    part = whole.select(chosen).select(range(len(chosen)))
    assert list(part) == [rows[i] for i in chosen]
    assert [part[i] for i in range(len(part))] == [rows[i] for i in chosen]
    assert set(part.names()) == {name for i in chosen for name in rows[i]}


def test_long_runs_and_gaps_come_in_order() -> None:
    values = [f"text {i}" for i in range(2000)]
    rows = PackedRows({"a": column(list(values), batch=300)}, range(2000))
    order = [*range(1000, 2000), 5, 4, 3, *range(600)]
    assert [row["a"] for row in rows.select(order)] == [values[i] for i in order]


def test_an_origin_names_its_file_and_line() -> None:
    origins = PackedOrigins([("a", 0), ("b", 2), ("empty", 4), ("c", 4)], [1, 3, 2, 9, 5], range(5))
    assert list(origins) == ["a:1", "a:3", "b:2", "b:9", "c:5"]
    assert list(origins.select([4, 0])) == ["c:5", "a:1"]


@given(st.lists(st.lists(st.integers(0, 9) | st.just(2**40), max_size=9), max_size=9))
def test_line_numbers_are_those_that_were_added(batches: list[list[int]]) -> None:
    numbers = LineNumbers()
    for batch in batches:
        numbers.extend(batch)
    expected = [number for batch in batches for number in batch]
    assert [numbers[i] for i in range(len(numbers))] == expected
    assert numbers[2:5] == expected[2:5]


def test_lines_that_follow_each_other_cost_nothing_each() -> None:
    numbers = LineNumbers()
    for start in range(0, 100_000, 1000):
        numbers.extend(range(start, start + 1000))
    assert numbers[99_999] == 99_999
    assert len(numbers._firsts) == 100


def test_records_over_packed_rows_select_without_unpacking() -> None:
    rows = PackedRows({"text": column(["a", "b", "c"])}, range(3))
    records = Records(rows, PackedOrigins([("f", 0)], [1, 2, 3], range(3)))
    assert [row["text"] for row in records[1:]] == ["b", "c"]
    assert records.columns() == ("text",)


def test_a_date_of_parquet_comes_back_as_a_date() -> None:
    assert column([datetime.date(2020, 2, 29)])[0] == datetime.date(2020, 2, 29)
