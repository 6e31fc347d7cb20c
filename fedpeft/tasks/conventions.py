"""Column conventions (TRL's, and Alpaca's): which columns of a data set carry an example."""

import enum
from collections.abc import Mapping

__all__ = ["KNOWN_COLUMNS", "Convention"]


class Convention(enum.Enum):
    """Which columns carry an example."""

    TEXT_LABEL = "text+label"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt+completion"
    ALPACA = "instruction/input/output"
    TEXT = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return _COLUMNS[self]


_COLUMNS: Mapping[Convention, tuple[str, ...]] = {
    Convention.TEXT_LABEL: ("text", "label"),
    Convention.MESSAGES: ("messages",),
    Convention.PROMPT_COMPLETION: ("prompt", "completion"),
    Convention.ALPACA: ("instruction", "output"),  # `input` is optional, row by row
    Convention.TEXT: ("text",),
}
KNOWN_COLUMNS = ("text", "label", "prompt", "completion", "messages", "instruction", "input", "output", "person")
