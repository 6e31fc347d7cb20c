"""A data format: fastText's lines, ``__label__good it was``, in files that end in .ft or .ft.gz."""

from collections.abc import Iterator
from typing import IO


def read(file: IO[bytes]) -> Iterator[dict[str, object]]:
    """A row per line; an error of any kind is said of the file."""
    for number, line in enumerate(file, 1):
        label, _, text = line.decode("utf-8").strip().partition(" ")
        if not label.startswith("__label__"):
            raise ValueError(f"line {number} has no label")
        yield {"label": label.removeprefix("__label__"), "text": text}
