"""Request bodies of OpenAI's API, and of vLLM's /classify, as records: checked, within limits.

A setting that would change the answer and is not followed is refused by name, since a client would take the answer
for one that followed it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.bounded_json import JsonLimits, JsonRefused, JsonValue, loads
from fedpeft.data import Record
from fedpeft.data.row_checks import ROLES
from fedpeft.errors import FedpeftError
from fedpeft_client.inference import Sampling
from fedpeft_client.serving.engine import Question

__all__ = [
    "MOST_TEXTS",
    "MOST_TOKENS",
    "ClassifyRequest",
    "GenerationRequest",
    "RequestRefused",
    "TextsRequest",
    "chat_of",
    "classify_of",
    "completions_of",
    "embeddings_of",
]

MOST_TEXTS, MOST_TOKENS, MOST_STOPS = 64, 4096, 4
_FREE: Mapping[str, tuple[JsonValue, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "logprobs": (False, 0, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "tools": ([], None),
    "functions": ([], None),
    "response_format": ({"type": "text"}, None),
    "dimensions": (None,),
}
"""Settings that are not followed -> the values at which they say nothing."""
_ROW_FORMS = (("text",), ("text", "text_pair"), ("text_pair", "text"), ("words",))


class RequestRefused(FedpeftError):
    """A body that cannot be answered.

    Args:
        message: what was expected and found.
        param: the field.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What is asked of a language model.

    Args:
        model: its name; empty: the only one.
        questions: one answer each.
        stream: whether answers come as they are made.
        usage: whether a stream ends with counts of tokens.
    """

    model: str
    questions: tuple[Question, ...]
    stream: bool
    usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsRequest:
    """Texts to embed.

    Args:
        model: its name; empty: the only one.
        texts: one result each.
        base64: whether vectors are wanted as base64 of little-endian float32.
    """

    model: str
    texts: tuple[str, ...]
    base64: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyRequest:
    """What is asked of a model with outputs of its own.

    Args:
        model: its name; empty: the only one.
        rows: one result each: ``text``, ``text`` and ``text_pair``, or ``words``, as in a data file.
    """

    model: str
    rows: tuple[Record, ...]


def completions_of(body: bytes) -> GenerationRequest:
    """A body of /v1/completions.

    Raises:
        RequestRefused: it is none, or asks for what is not done here.
    """
    content = _object(body)
    how, stop = _sampling(content), _stop(content)
    questions = tuple(
        Question(row={"prompt": text}, how=how, stop=stop, plain=True) for text in _strings(content, "prompt")
    )
    return _words(content, questions)


def chat_of(body: bytes) -> GenerationRequest:
    """A body of /v1/chat/completions; as ``completions_of``."""
    content = _object(body)
    turns = content.get("messages")
    if not isinstance(turns, list) or not turns or len(turns) > 1000:
        raise RequestRefused("Expected messages as a list of {role, content}, found none.", "messages")
    messages = tuple(_turn(turn) for turn in turns)
    return _words(content, (Question(row={"messages": messages}, how=_sampling(content), stop=_stop(content)),))


def embeddings_of(body: bytes) -> TextsRequest:
    """A body of /v1/embeddings; as ``completions_of``."""
    content = _object(body)
    form = content.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise RequestRefused(f"Expected encoding_format float or base64, found {form!r:.40}.", "encoding_format")
    return TextsRequest(model=_name(content), texts=_strings(content, "input"), base64=form == "base64")


def classify_of(body: bytes) -> ClassifyRequest:
    """A body of /classify; as ``completions_of``."""
    content = _object(body)
    value = content.get("input")
    listed = value if isinstance(value, list) else [value]
    if not 1 <= len(listed) <= MOST_TEXTS:
        raise RequestRefused(f"Expected input as a text or a list of 1 to {MOST_TEXTS}, found {len(listed)}.", "input")
    return ClassifyRequest(model=_name(content), rows=tuple(map(_row, listed)))


def _row(value: JsonValue) -> Record:
    row = {"text": value} if isinstance(value, str) else value
    if not isinstance(row, dict) or tuple(row) not in _ROW_FORMS or not all(map(_is_asked, row, row.values())):
        raise RequestRefused(
            "Expected each input as a text, {text, text_pair} or {words: [...]}, none of them empty, "
            f"found {value!r:.60}.",
            "input",
        )
    return dict(row)


def _is_asked(column: str, value: JsonValue) -> bool:
    """A text that says something; of words each a word."""
    if column == "words":
        return (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(word, str) and len(word.split()) == 1 for word in value)
        )
    return isinstance(value, str) and bool(value.strip())


def _object(body: bytes) -> dict[str, JsonValue]:
    try:
        content = loads(body, JsonLimits(max_bytes=len(body) + 1))
    except JsonRefused as refused:
        raise RequestRefused(f"Expected a JSON object, found {refused}.") from refused
    if not isinstance(content, dict):
        raise RequestRefused(f"Expected a JSON object, found {type(content).__name__}.")
    for name, nothing in _FREE.items():
        if name in content and content[name] not in nothing:
            raise RequestRefused(f"Expected a request without {name}, which is not supported here.", name)
    return content


def _words(content: Mapping[str, JsonValue], questions: tuple[Question, ...]) -> GenerationRequest:
    options = content.get("stream_options")
    usage = isinstance(options, dict) and options.get("include_usage") is True
    stream = content.get("stream") is True
    return GenerationRequest(model=_name(content), questions=questions, stream=stream, usage=usage)


def _name(content: Mapping[str, JsonValue]) -> str:
    name = content.get("model", "")
    if not isinstance(name, str):
        raise RequestRefused("Expected the name of a model, see /v1/models.", "model")
    return name


def _strings(content: Mapping[str, JsonValue], name: str) -> tuple[str, ...]:
    value = content.get(name)
    listed = value if isinstance(value, list) else [value]
    texts = tuple(one for one in listed if isinstance(one, str) and one.strip())
    if len(texts) != len(listed) or not 1 <= len(texts) <= MOST_TEXTS:
        raise RequestRefused(f"Expected {name} as a text or a list of 1 to {MOST_TEXTS} texts, none empty.", name)
    return texts


def _turn(turn: JsonValue) -> dict[str, str]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if isinstance(content, list):  # parts, of which texts alone are read
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(str(part) for part in parts) if parts and all(isinstance(p, str) for p in parts) else None
    if role not in ROLES or not isinstance(content, str):
        raise RequestRefused(f"Expected turns of a role of {', '.join(ROLES)} and a text.", "messages")
    return {"role": str(role), "content": content}


def _sampling(content: Mapping[str, JsonValue]) -> Sampling:
    limit = content.get("max_completion_tokens")
    tokens = limit if limit is not None else content.get("max_tokens")
    return Sampling(
        max_tokens=int(_number(tokens, "max_tokens", 64, 1, MOST_TOKENS, whole=True)),
        temperature=_number(content.get("temperature"), "temperature", 0.0, 0, 2),
        top_p=_number(content.get("top_p"), "top_p", 1.0, 1e-6, 1),
        seed=int(_number(content.get("seed"), "seed", 0, 0, 2**53, whole=True)),
    )


def _number(value: JsonValue, name: str, default: float, least: float, most: float, *, whole: bool = False) -> float:
    if value is None:
        return default
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not least <= float(str(value)) <= most:
        kind = "a whole number" if whole else "a number"
        raise RequestRefused(f"Expected {name} as {kind} from {least:g} to {most:g}, found {value!r:.40}.", name)
    return float(str(value))


def _stop(content: Mapping[str, JsonValue]) -> tuple[str, ...]:
    value = content.get("stop")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    stops = tuple(one for one in listed if isinstance(one, str) and one and len(one) <= 256)
    if len(stops) != len(listed) or len(stops) > MOST_STOPS:
        raise RequestRefused(f"Expected stop as at most {MOST_STOPS} texts of at most 256 characters.", "stop")
    return stops
