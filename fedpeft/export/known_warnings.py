"""Warnings of peft and transformers about each other, which nobody who uses fedpeft can do anything about."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_known_warnings"]


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """peft 0.21 asks transformers 5 for a property by its former name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
