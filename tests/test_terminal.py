"""What others wrote, on a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.terminal import printable


@given(st.text())
def test_whatever_comes_in_is_one_line_without_a_character_that_acts(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\n" not in shown


@pytest.mark.parametrize(
    "text", ["ward-a", "Klinik \N{LATIN SMALL LETTER U WITH DIAERESIS}ber", "\N{PILE OF POO}", "a b"]
)
def test_what_shows_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("one", ["\x1b[2J", "\x9b2J", "\u202e", "\x07", "\u2028", "\r", "\x7f", "\ud800"])
def test_what_acts_is_written_out(one: str) -> None:
    assert "\\" in printable(one)


def test_our_own_lines_stay_lines() -> None:
    assert printable("a\n\x1b[1mb", keep_lines=True) == "a\n\\x1b[1mb"
