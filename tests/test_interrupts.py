import os
import signal
import threading
from collections.abc import Iterator

import pytest

from fedpeft.interrupts import undisturbed


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_what_was_begun_is_done_whole_and_then_the_interrupt_comes() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            press()
            press()
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_another_is_on_its_way_is_one() -> None:
    done = []

    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            with undisturbed():
                press()
                done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]


def test_an_error_inside_is_told_where_nobody_interrupts() -> None:
    with pytest.raises(ValueError, match="inside"), undisturbed():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_caller_hears_what_came_first() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with undisturbed():
            press(signal.SIGTERM)
            assert not heard
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with undisturbed():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_thread_changes_nothing() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            done.append("whole")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["whole"]
