"""Text that others wrote, made safe to print: a terminal acts on what a log only holds."""

import dataclasses
import shlex
import unicodedata
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Verbosity", "counted", "printable", "quoted", "set_verbosity", "span", "verbosity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbosity:
    """What this process shows beside results.

    Args:
        quiet: no progress.
        verbose: more of what goes on, and where errors came from.
        no_color: plain text.
    """

    quiet: bool = False
    verbose: bool = False
    no_color: bool = False


DEFAULT = Verbosity()
_current: ContextVar[Verbosity] = ContextVar("verbosity", default=DEFAULT)


def verbosity() -> Verbosity:
    """As the command line asked for it; in other threads than the command's own, the default."""
    return _current.get()


def set_verbosity(**fields: bool) -> None:
    """Change what this process shows; without fields back to the default."""
    _current.set(dataclasses.replace(_current.get(), **fields) if fields else DEFAULT)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "round"), counted(1200, "round")
        ('1 round', '1,200 rounds')
    """
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def span(seconds: float, *, roughly: bool = False) -> str:
    """A time as a person says it; ``roughly`` where it is foretold.

    Example:
        >>> span(3.14), span(125), span(11220)
        ('3.1 s', '2 min 05 s', '3 h 07 min')
        >>> span(3.14, roughly=True), span(150, roughly=True)
        ('3 s', '2 min')
    """
    if roughly and seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if not roughly and seconds < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def quoted(*words: object) -> str:
    """A command line that can be pasted into a shell, whatever its words hold; a path is no option, whatever its name.

    Example:
        >>> quoted("fedpeft", "runs", "show", Path("my runs/a")), quoted("cat", Path("-a"))
        ("fedpeft runs show 'my runs/a'", 'cat ./-a')
    """
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word)[:1] == "-" else str(word) for word in words)


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""The text with every control, format and separator character written out as ``\xNN`` or ``\uNNNN``.

    Escape sequences would move the cursor and rewrite lines, newlines would forge rows of a table, marks of direction
    would show a name the wrong way round.

    Args:
        text: of a device, a coordinator or a file.
        keep_lines: whether newlines and tabs are ours and stay.

    Example:
        >>> printable("bye\x1b[2J\nward-0 revoked")
        'bye\\x1b[2J\\nward-0 revoked'
    """
    return "".join(one if _shows(one) or (keep_lines and one in "\n\t") else _escaped(one) for one in text)


def _shows(one: str) -> bool:
    return one == " " or unicodedata.category(one)[0] not in "CZ"


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
