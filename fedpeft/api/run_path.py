"""Where a run lies."""

from pathlib import Path

from fedpeft.errors import DataInvalid

__all__ = ["run_directory"]


def run_directory(path: str | Path) -> Path:
    """The directory of a run.

    Raises:
        DataInvalid: there is none.
    """
    found = Path(path)
    if not found.is_dir():
        raise DataInvalid(f"Expected a run directory, found none at {found}; `fedpeft runs ls` lists them.")
    return found
