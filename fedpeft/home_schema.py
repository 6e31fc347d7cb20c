"""HOME/schema.json: which form the files of a home have, so that a program that is older than its home says so.

A number for each kind of home, raised when an older program would misread what is there. A home without the file is of
the first form. Nobody changes a home's form but a program that owns it: ``keep_schema`` at its start.
"""

import importlib.metadata
import json
from pathlib import Path

from fedpeft import bounded_json
from fedpeft.errors import IntegrityFailed
from fedpeft.files import write_file

__all__ = ["expect_schema", "keep_schema", "schema_of"]

FIRST = 1
NAME = "schema.json"


def schema_of(home: Path) -> tuple[int, str]:
    """The form of a home, and the version of fedpeft that gave it that form (empty: unknown).

    Raises:
        IntegrityFailed: the file is not what was written.
    """
    path = home / NAME
    try:
        found = bounded_json.loads(path.read_bytes())
    except FileNotFoundError:
        return FIRST, ""
    except (OSError, ValueError) as error:
        raise IntegrityFailed(f"Expected {path} as fedpeft wrote it, found {error}; restore it.") from error
    match found:
        case {"schema": int(number), "fedpeft": str(version)} if number >= FIRST:
            return number, version
    raise IntegrityFailed(f"Expected a schema and a version in {path}, found another; restore it.")


def expect_schema(home: Path, known: int) -> None:
    """Returns when a program that knows forms up to ``known`` can read the home.

    Raises:
        IntegrityFailed: the home is newer; names the version that it needs.
    """
    found, version = schema_of(home)
    if found > known:
        raise IntegrityFailed(
            f"Expected a home of schema {known} or before in {home}, found schema {found}, written by fedpeft "
            f"{version}; this is fedpeft {importlib.metadata.version('fedpeft')}. Use {version} or later, or restore a "
            "backup that was made before."
        )


def keep_schema(home: Path, current: int) -> None:
    """Notes that the home has this form now. Whoever calls it owns the home.

    Raises:
        IntegrityFailed: the home is newer.
    """
    expect_schema(home, current)
    if not (home / NAME).exists() or schema_of(home)[0] < current:
        text = json.dumps({"schema": current, "fedpeft": importlib.metadata.version("fedpeft")})
        write_file(home / NAME, f"{text}\n".encode())
