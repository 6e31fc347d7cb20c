"""Text that others wrote, made safe to print: a terminal acts on what a log only holds."""

import unicodedata

__all__ = ["printable"]


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""The text with every control, format and separator character written out as ``\xNN`` or ``\uNNNN``.

    Escape sequences would move the cursor and rewrite lines, newlines would forge rows of a table, marks of direction
    would show a name the wrong way round.

    Args:
        text: of a device, a coordinator or a file.
        keep_lines: whether newlines are ours and stay.

    Example:
        >>> printable("bye\x1b[2J\nward-0 revoked")
        'bye\\x1b[2J\\nward-0 revoked'
    """
    return "".join(one if _shows(one) or (keep_lines and one == "\n") else _escaped(one) for one in text)


def _shows(one: str) -> bool:
    return one == " " or unicodedata.category(one)[0] not in "CZ"


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
