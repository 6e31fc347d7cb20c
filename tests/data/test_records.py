import pytest

from fedpeft.data.records import MAX_PROBLEMS, ProblemLog, Records
from fedpeft.errors import DataInvalid


def test_a_selection_keeps_each_rows_origin() -> None:
    chosen = Records.of([{"text": letter} for letter in "abc"], name="notes.csv").select([2, 0])
    assert [row["text"] for row in chosen] == ["c", "a"]
    assert chosen.origins == ("notes.csv:3", "notes.csv:1")


def test_a_slice_is_records_and_an_index_is_a_row() -> None:
    records = Records.of([{"text": letter} for letter in "abc"])
    assert records[1:].origins == ("records:2", "records:3")
    assert records[-1] == {"text": "c"}


def test_columns_are_those_of_any_row_in_order_of_appearance() -> None:
    assert Records.of([{"b": 1}, {"a": 1, "b": 2}]).columns() == ("b", "a")


def test_rows_without_origins_are_a_bug() -> None:
    with pytest.raises(ValueError, match="one origin a row"):
        Records(({"text": "a"},), ())


def test_a_refusal_lists_the_first_problems_and_counts_all() -> None:
    log = ProblemLog()
    for number in range(MAX_PROBLEMS + 312):
        log.add(f"f:{number}", "text", "nothing")
    with pytest.raises(DataInvalid) as caught:
        log.raise_if_any("data")
    assert "332 problems" in str(caught.value)
    assert len(caught.value.problems) == MAX_PROBLEMS
    assert caught.value.exit_code == 3


def test_no_problem_no_refusal() -> None:
    ProblemLog().raise_if_any("data")
