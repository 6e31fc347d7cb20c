"""What has to be done whole although somebody presses Ctrl-C, once or again: cleaning up, and saying how to go on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["undisturbed"]

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block; the first of them then does what it does otherwise.

    For blocks of seconds. In another thread than the main one, which hears no signals, it changes nothing.
    """
    heard: list[tuple[int, FrameType | None]] = []
    before: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}
    try:
        for number in NUMBERS:
            if callable(handler := signal.getsignal(number)):  # what is ignored, or ends us at once, stays so
                signal.signal(number, lambda sent, frame: heard.append((sent, frame)))
                before[number] = handler
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for sent, frame in heard[:1]:
            before[signal.Signals(sent)](sent, frame)
