"""What a check across fields found."""

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One impossible combination.

    Args:
        key: the key to change, e.g. ``device[1].rank``.
        reads: every other key the finding rests on.
        expected: what would be possible.
        found: what there is.
        remedy: what to do.
    """

    key: str
    reads: tuple[str, ...] = ()
    expected: str
    found: str
    remedy: str = ""
