"""Where a run lies."""

import os
from pathlib import Path

from fedpeft.errors import DataInvalid

__all__ = ["run_directory"]


def run_directory(path: str | os.PathLike[str]) -> Path:
    """The directory of a run.

    Raises:
        DataInvalid: there is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataInvalid(f"Expected a run directory, found {path!r:.40}.")
    found = Path(path)
    if not found.is_dir():
        raise DataInvalid(f"Expected a run directory, found none at {path}; `fedpeft runs ls` lists them.")
    return found
