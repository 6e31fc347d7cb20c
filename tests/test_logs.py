"""Lines of the log that somebody else decides the number of."""

import logging

from fedpeft.logs import FewOfAKind
from fedpeft.testing.clock import FakeClock


def said(few: FewOfAKind, text: str, *values: object) -> str | None:
    """What comes of a line; None where nothing does."""
    record = logging.LogRecord("flwr", logging.ERROR, __file__, 1, text, values, None)
    return record.getMessage() if few.filter(record) else None


def test_a_kind_of_line_is_said_a_few_times_whatever_its_values_are() -> None:
    few = FewOfAKind(most=3, clock=FakeClock())
    assert [said(few, "no message %s", number) is not None for number in range(5)] == [True] * 3 + [False] * 2
    assert said(few, "another kind") == "another kind"


def test_the_next_line_says_how_many_were_left_out() -> None:
    clock = FakeClock()
    few = FewOfAKind(most=1, period_s=60.0, clock=clock)
    for number in range(8):
        said(few, "no message %s", number)
    clock.advance(60.0)
    assert said(few, "no message %s", 8) == "no message 8 (and 7 lines like the last ones)"
    clock.advance(60.0)
    assert said(few, "no message %s", 9) == "no message 9"


def test_who_makes_up_kinds_fills_neither_log_nor_memory() -> None:
    few = FewOfAKind(most=3, clock=FakeClock())
    assert sum(said(few, f"kind {number}") is not None for number in range(1000)) == 3
    assert len(few._said) < 10
