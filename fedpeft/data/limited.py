"""Rendering by a base's chat template, a program that its publisher wrote, within limits of time and memory."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from fedpeft.bounded_json import JsonValue
from fedpeft.errors import ConfigInvalid, DataInvalid
from fedpeft.isolated import IsolationEnded, isolated

__all__ = ["TEMPLATE_BYTES", "TEMPLATE_S", "TEMPLATE_S_A_ROW", "within_limits"]

TEMPLATE_S, TEMPLATE_S_A_ROW, TEMPLATE_BYTES = 10.0, 0.02, 1 << 30
"""CPU time of a batch of rows, and memory beyond what is there. A row takes a millisecond, about."""

Made = TypeVar("Made")


def within_limits(
    makes: Sequence[Callable[[], Made]], dump: Callable[[Made], JsonValue], load: Callable[[JsonValue], Made]
) -> list[Made | DataInvalid]:
    """What each of ``makes`` gives, or its refusal, all of them made in one process with limits.

    Args:
        makes: renders one row each.
        dump, load: what was made as JSON, and back.

    Raises:
        ConfigInvalid: the template takes without end.
    """

    def work() -> JsonValue:
        found: list[JsonValue] = []
        for make in makes:
            try:
                found.append([dump(make())])
            except DataInvalid as error:
                found.append(str(error))
        return found

    try:
        made = isolated(work, cpu_s=TEMPLATE_S + TEMPLATE_S_A_ROW * len(makes), memory_bytes=TEMPLATE_BYTES)
    except IsolationEnded as ended:
        raise ConfigInvalid(
            f"Expected the base's chat template to render {len(makes)} conversations, found that {ended}; "
            "use another base, or the columns prompt and completion."
        ) from ended
    rows = made if isinstance(made, list) else []
    return [load(one[0]) if isinstance(one, list) else DataInvalid(str(one)) for one in rows]
