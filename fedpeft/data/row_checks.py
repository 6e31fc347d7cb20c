"""One row against its convention: what is missing, of another kind, or not to be trained on."""

from collections.abc import Iterator, Mapping

from fedpeft.data.records import ProblemLog, Record

__all__ = [
    "check_alpaca",
    "check_messages",
    "check_pair",
    "check_source",
    "check_text",
    "check_texts",
    "check_together",
    "check_words",
    "keys_not_read",
]

_RENDER = "Render the text yourself and use the columns prompt and completion."
ROLES = ("system", "user", "assistant", "tool", "developer")
REFUSED_KEYS: Mapping[str, tuple[str, str, str]] = {
    "tool_calls": ("a text as the answer", "a call of a tool, which is not rendered", _RENDER),
    "function_call": ("a text as the answer", "a call of a function, which is not rendered", _RENDER),
    "weight": ("answers that are all trained on", "one with weight 0", "Use the columns prompt and completion."),
    "train": ("answers that are all trained on", "one that is not to be", "Use the columns prompt and completion."),
}
"""Keys of a message that change what is to be learnt, and are not followed: (expected, found, remedy)."""
USED_KEYS = ("role", "content", "weight", "train")


def check_text(row: Record, origin: str, log: ProblemLog, column: str = "text") -> None:
    """A column that is to hold a text."""
    value = row.get(column)
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
        log.add(f"{origin}: {column}", "text", found, "Write the column as text." if isinstance(value, bytes) else "")
    elif not value.strip():
        log.add(f"{origin}: {column}", "text", "an empty text", "Fill it or remove the row.")
    elif not _is_unicode(value):
        log.add(f"{origin}: {column}", "Unicode text", "half a surrogate pair", "Correct the escape, e.g. \\ud83d.")


def check_texts(row: Record, origin: str, log: ProblemLog) -> None:
    """``text`` and ``text_pair``."""
    check_text(row, origin, log)
    check_text(row, origin, log, "text_pair")


def check_words(row: Record, origin: str, log: ProblemLog) -> None:
    """``words``; how many there are is checked with their tags."""
    words = row.get("words")
    if isinstance(words, (list, tuple)) and any(isinstance(word, str) and not _is_unicode(word) for word in words):
        log.add(f"{origin}: words", "Unicode text", "half a surrogate pair", "Correct the escape, e.g. \\ud83d.")
    elif isinstance(words, str):
        check_text(row, origin, log, "words")


def _is_unicode(text: str) -> bool:
    """No lone surrogates, which JSON escapes can make and no tokenizer takes."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_pair(row: Record, origin: str, log: ProblemLog) -> None:
    """``prompt`` and ``completion``."""
    check_text(row, origin, log, "prompt")
    check_text(row, origin, log, "completion")


def check_source(row: Record, origin: str, log: ProblemLog) -> None:
    """``source`` and ``target``."""
    check_text(row, origin, log, "source")
    check_text(row, origin, log, "target")


def check_together(row: Record, origin: str, log: ProblemLog) -> None:
    """``anchor`` and ``positive``, and ``negative`` where there is one: another text than the positive one."""
    columns = [
        column for column in ("anchor", "positive", "negative") if column != "negative" or row.get(column) is not None
    ]
    for column in columns:
        check_text(row, origin, log, column)
    if row.get("positive") == row.get("negative") and isinstance(row.get("positive"), str):
        log.add(f"{origin}: negative", "another text than positive", "the same", "Remove the row or the column.")
    elif row.get("positive") == row.get("anchor") and isinstance(row.get("positive"), str):
        log.add(f"{origin}: positive", "another text than anchor", "the same", "Remove the row: it teaches nothing.")


def check_alpaca(row: Record, origin: str, log: ProblemLog) -> None:
    """``instruction``, ``output``, and ``input`` where there is one."""
    check_text(row, origin, log, "instruction")
    check_text(row, origin, log, "output")
    if not isinstance(row.get("input"), str | None):
        log.add(f"{origin}: input", "text or nothing", type(row["input"]).__name__)


def check_messages(row: Record, origin: str, log: ProblemLog) -> None:
    """A conversation: roles, texts, an answer at its end, and nothing that training would not use."""
    turns = row.get("messages")
    where = f"{origin}: messages"
    if not isinstance(turns, (list, tuple)):
        log.add(where, "a list of {role, content}", "nothing" if turns is None else type(turns).__name__)
        return
    answers, before = 0, log.count
    for number, turn in enumerate(turns, 1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        place = f"{where}[{number}]"
        if isinstance(turn, Mapping) and (key := next((key for key in REFUSED_KEYS if _refused(turn, key)), None)):
            log.add(f"{place}.{key}", *REFUSED_KEYS[key])
        elif role not in ROLES or not isinstance(content, str) or not _is_unicode(content):
            remedy = "Rename from and value (ShareGPT) to role and content." if "from" in (turn or ()) else ""
            log.add(place, f"a role of {', '.join(ROLES)} and a text", f"{turn!r:.60}", remedy)
        elif role == "assistant" and not content.strip():
            log.add(place, "an answer", "an empty text", "Fill it, or remove the turn and what follows.")
        elif role == "assistant":
            answers += 1
    if not answers and log.count == before:
        log.add(where, "at least one non-empty assistant turn", "none", "There is nothing to learn from this row.")


def _refused(turn: Mapping[str, object], key: str) -> bool:
    if key in ("weight", "train"):
        return key in turn and turn[key] is not None and not turn[key]
    return bool(turn.get(key))


def keys_not_read(turns: object) -> Iterator[str]:
    """Keys beside role and content that hold something, of every turn."""
    for turn in turns if isinstance(turns, (list, tuple)) else ():
        if isinstance(turn, Mapping):
            yield from (str(key) for key, value in turn.items() if key not in USED_KEYS and value not in (None, "", []))
