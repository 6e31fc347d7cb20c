"""Rows of preferences, in TRL's conventions: what the prompt is, and the preferred and the other answer.

| columns | |
|---|---|
| prompt, chosen, rejected | two answers to one prompt |
| chosen, rejected | the prompt is what both begin with |
| prompt, completion, label | one answer, and whether it is wanted |

Each is a text, or a list of messages. Beside answers that are whole conversations a prompt in words is not read: they
begin with it (as in UltraFeedback).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.data.records import ProblemLog, Record
from fedpeft.data.row_checks import check_messages, check_text
from fedpeft.tasks import Convention

__all__ = ["Side", "asked_as", "check_preference", "check_wanted", "is_wanted", "sides_of"]


@dataclass(frozen=True, slots=True)
class Side:
    """One answer behind its prompt, as a row of a language model's.

    Args:
        row: with ``messages``, or ``prompt`` and ``completion``.
        convention: of these columns.
        context: turns that are the prompt.
    """

    row: Record
    convention: Convention
    context: int = 0


def sides_of(row: Record) -> tuple[Side | None, Side | None]:
    """The preferred answer and the other one of a validated row; without a pair one of them is None."""
    if "chosen" not in row:
        side = _side(row.get("prompt"), row.get("completion"))
        return (side, None) if is_wanted(row.get("label")) else (None, side)
    prompt, chosen, rejected = _parts(row)
    return _side(prompt, chosen), _side(prompt, rejected)


def asked_as(row: Record) -> Convention:
    """How a model is asked that was trained on rows like this one, which its columns do not say.

    Example:
        >>> asked_as({"prompt": "a", "chosen": " b", "rejected": " c"}).value
        'prompt+completion'
        >>> turn = {"role": "user", "content": "a"}
        >>> asked_as({"prompt": [turn], "completion": [{"role": "assistant", "content": "b"}], "label": True}).value
        'messages'
    """
    preferred, other = sides_of(row)
    side = preferred or other
    return Convention.PROMPT_COMPLETION if side is None else side.convention


def is_wanted(label: object) -> bool | None:
    """A label of an answer: true or false, 1 or 0, also as text; None for anything else."""
    word = label.strip().casefold() if isinstance(label, str) else label
    if word in (True, "true", "1"):
        return True
    return False if word in (False, "false", "0") else None


def check_preference(row: Record, origin: str, log: ProblemLog) -> None:
    """``chosen`` and ``rejected``, with ``prompt`` or without."""
    before, lists = log.count, isinstance(row.get("chosen"), (list, tuple))
    for column in ("chosen", "rejected"):
        if lists:
            check_messages({"messages": row.get(column)}, f"{origin}: {column}", log)
        else:
            check_text(row, origin, log, column)
    if "prompt" in row:
        _check_prompt(row, origin, log, lists=lists)
    if log.count > before:
        return
    _, chosen, rejected = _parts(row)
    if chosen == rejected:
        log.add(f"{origin}: rejected", "another answer than chosen", "the same", "Remove the row: it prefers nothing.")
    elif not (_says(chosen) and _says(rejected)):
        remedy = "Give the prompt in a column of its own."
        log.add(
            f"{origin}: chosen", "answers that part before one ends", "one that goes on where the other ends", remedy
        )


def check_wanted(row: Record, origin: str, log: ProblemLog) -> None:
    """``prompt``, ``completion`` and whether it is wanted."""
    lists = isinstance(row.get("completion"), (list, tuple))
    if lists:
        check_messages({"messages": row.get("completion")}, f"{origin}: completion", log)
    else:
        check_text(row, origin, log, "completion")
    _check_prompt(row, origin, log, lists=lists)
    if is_wanted(row.get("label")) is None:
        log.add(
            f"{origin}: label", "true or false", f"{row.get('label')!r:.40}", "Say whether the completion is wanted."
        )


def _check_prompt(row: Record, origin: str, log: ProblemLog, *, lists: bool) -> None:
    prompt = row.get("prompt")
    if not lists or isinstance(prompt, str):
        check_text(row, origin, log, "prompt")
        return
    turns = prompt if isinstance(prompt, (list, tuple)) else None
    # A question has no answer yet; the check of conversations wants one.
    probe = [*turns, {"role": "assistant", "content": "answer"}] if turns else turns
    check_messages({"messages": probe}, f"{origin}: prompt", log)


def _parts(row: Record) -> tuple[object, object, object]:
    """Prompt, chosen and rejected, the last two without the prompt."""
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if isinstance(chosen, (list, tuple)) and isinstance(rejected, (list, tuple)):
        if prompt is not None and not (isinstance(prompt, str) and _opens(chosen) and _opens(rejected)):
            return prompt, chosen, rejected
        shared = _shared(list(chosen), list(rejected))
        return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])
    first, second = str(chosen), str(rejected)
    if prompt is not None:
        return prompt, first, second
    shared = _shared(first, second)
    shared -= shared > 0 and first[shared - 1] == " "  # the space belongs to the answer's first word
    return first[:shared], first[shared:], second[shared:]


def _shared(one: "str | list[object]", other: "str | list[object]") -> int:
    """How much of the beginning is the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _opens(turns: "list[object] | tuple[object, ...]") -> bool:
    """Whether a conversation is whole: somebody else than the assistant begins it."""
    first = turns[0] if turns else None
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def _says(answer: object) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    turns = answer if isinstance(answer, (list, tuple)) else ()
    return any(isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in turns)


def _side(prompt: object, answer: object) -> Side:
    if isinstance(answer, (list, tuple)):
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())  # type: ignore[call-overload]
        return Side({"messages": [*before, *answer]}, Convention.MESSAGES, len(before))
    return Side({"prompt": str(prompt), "completion": str(answer)}, Convention.PROMPT_COMPLETION)
