"""Which versions of coordinator and device work together: the support window, and what is said outside it."""

import re

__all__ = ["outside_window"]


def outside_window(ours: str, theirs: str) -> str:
    """Why two versions do not work together, in words; empty when they do.

    Before 1.0 the same minor version is needed (0.3.x with 0.3.y); from then on the same major one.

    Example:
        >>> outside_window("0.3.1", "0.3.0")
        ''
        >>> outside_window("0.3.1", "0.4.0")
        'fedpeft 0.3.1 works with 0.3.x, found 0.4.0'
    """
    mine, other = _series(ours), _series(theirs)
    return "" if mine == other else f"fedpeft {ours} works with {'.'.join(mine)}.x, found {theirs[:40]}"


def _series(version: str) -> tuple[str, ...]:
    parts = re.findall(r"[0-9]+", version)[:2] or ["?"]
    return tuple(parts if parts[0] == "0" else parts[:1])
