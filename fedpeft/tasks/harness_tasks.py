"""What a task file of lm-eval may name, looked at before lm-eval loads it: local data, and metrics that there are."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedpeft.errors import DataInvalid

__all__ = ["expect_local_data", "expect_metrics"]

SOURCES = ("dataset_path", "dataset_name", "dataset_kwargs", "data_files", "data_dir")
"""Keys below which ``datasets`` takes an address as readily as a path."""
OWN = ("process_results", "class")
"""Keys of a task that computes what it measures by code of its own."""


def expect_local_data(config: object, *, file: Path) -> None:
    """No text below ``SOURCES``, at any depth, is an address.

    Args:
        config: a task file's, with what it includes.
        file: for the error.

    Raises:
        DataInvalid: one is; nothing was asked yet.
    """
    for task in _mappings(config):
        for key in SOURCES:
            for text in _texts(task.get(key)):
                if "://" in text:
                    raise DataInvalid(
                        f"Expected local data in {file}, found {text!r:.120} as {key}; no request is sent: download "
                        "the file yourself and name its path."
                    )


def expect_metrics(config: object, known: Sequence[str], *, file: Path) -> None:
    """Each metric of a ``metric_list`` is a function, Hugging Face's ``evaluate``'s by request, or one of ``known``.

    Raises:
        DataInvalid: one is none of them; no question was asked yet.
    """
    for task in _mappings(config):
        if any(key in task for key in OWN):
            continue
        for entry in _mappings(task.get("metric_list")):
            name = entry.get("metric")
            function = isinstance(name, str) and "/" in name  # what stood behind !function, behind the file's folder
            if name is not None and not function and entry.get("hf_evaluate") is not True and name not in known:
                raise DataInvalid(
                    f"Expected a metric of lm-eval in {file}, found {name!r:.60}; one of {', '.join(sorted(known))}."
                )


def _mappings(value: object) -> Iterator[Mapping[object, object]]:
    if isinstance(value, Mapping):
        yield value
        yield from _mappings(list(value.values()))
    elif isinstance(value, list):
        for one in value:
            yield from _mappings(one)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
