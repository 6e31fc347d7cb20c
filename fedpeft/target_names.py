"""What a run may write as a target of a method: short names, names of modules, patterns. No torch.

A pattern reaches devices in a plan, so it is checked before any is matched: Python's matcher takes exponential time on
some. Without repeated groups and with few open repetitions it cannot.
"""

import re

__all__ = ["ALL_LINEAR", "AUTO", "EXPERTS", "SLOTS", "is_pattern", "pattern_fault"]

SLOTS = ("q", "k", "v", "o", "up", "down", "gate")
"""The field's short names of a layer's matrices."""
AUTO = "auto"
"""As peft does for the architecture: q and v, or the matrix that holds them; all where there is no attention."""
ALL_LINEAR = "all-linear"
"""Every linear module of the layers."""

EXPERTS = "experts"
"""The matrices of a mixture's experts, all of them; never its router."""

LONGEST, MOST_OPEN = 200, 3
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def is_pattern(target: str) -> bool:
    """Whether a target is a regular expression and no name.

    Example:
        >>> is_pattern("attn.c_proj"), is_pattern(r".*\\.(q|k)_proj")
        (False, True)
    """
    return _NAME.fullmatch(target) is None


def pattern_fault(target: str) -> str | None:
    """Why a target cannot be used; None: it can.

    Example:
        >>> pattern_fault("(a+)+"), pattern_fault("[")
        ('a repeated group', 'unterminated character set at position 0')
    """
    if not target or len(target) > LONGEST:
        return f"{len(target)} characters, of 1 to {LONGEST}"
    if not is_pattern(target):
        return None
    bare = re.sub(r"\\.|\[(\\.|[^\]\\])*\]", "x", target)
    if re.search(r"\)[*+?{]", bare):
        return "a repeated group"
    if len(re.findall(r"[*+{]", bare)) > MOST_OPEN:
        return f"more than {MOST_OPEN} repetitions"
    if re.search(r"\\[1-9]|\(\?", target):
        return "a reference or an extension"
    try:
        re.compile(target)
    except (re.error, OverflowError) as error:
        return str(error)
    return None
