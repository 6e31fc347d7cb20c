"""Causal-lm examples as text: each convention in its form, which characters are trained on, and then which tokens.

``prompt`` + ``completion`` and Alpaca train on the completion only, ``messages`` on the assistant's turns only,
``text`` on everything. A chat template is a stranger's program: it runs within limits (``fedpeft.data.limited``).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedpeft.bounded_json import JsonValue
from fedpeft.data.limited import within_limits
from fedpeft.data.records import ProblemLog, Record
from fedpeft.data.tasks import Message, messages_of
from fedpeft.errors import DataInvalid, foreign
from fedpeft.tasks import Convention

__all__ = [
    "Encoding",
    "Rendered",
    "TokenIds",
    "Tokenizer",
    "bos_of",
    "expect_fast",
    "fitted",
    "framed_texts",
    "halves",
    "note_nothing_to_train",
    "refused_by_tokenizer",
    "render",
    "rendered_rows",
    "templated",
]


ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

TokenIds = npt.NDArray[np.int32]


class Encoding(Protocol):
    """What a tokenizer returns for a list of texts."""

    def __getitem__(self, key: str) -> list[list[object]]:
        """``input_ids``, ``token_type_ids``, or ``offset_mapping``: (begin, end) in characters for each token."""
        ...

    def __contains__(self, key: object) -> bool:
        """Whether it is there."""
        ...


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: str | None
    chat_template: str | None

    def __call__(
        self,
        text: list[str],
        text_pair: list[str] | None = None,
        *,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        verbose: bool = True,
    ) -> Encoding:
        """Token ids of each text, or of each pair of texts."""
        ...

    def apply_chat_template(
        self, conversation: list[Message], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as the model's text, for ``tokenize=False``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One causal-lm example as text.

    Args:
        text: what is tokenized.
        trained: ranges of characters that are trained on.
        bos: whether the tokenizer's BOS, if it uses one, goes before it (a chat template writes its own).
        eos: whether EOS goes after it, as a token to train on.
        answers: assistant turns in it; 0 where it is no conversation. Those beyond ``trained`` are context only.
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    bos: bool = True
    eos: bool = True
    answers: int = 0


def rendered_rows(
    rows: Sequence[Record],
    conventions: Sequence[Convention],
    tokenizer: Tokenizer,
    contexts: Sequence[int] | None = None,
) -> list[Rendered | DataInvalid]:
    """As ``render`` of each row, its refusal in its place; a chat template runs within limits.

    Args:
        contexts: see ``render``; None: no context.

    Raises:
        ConfigInvalid: the base's chat template takes without end.
    """
    makes = [
        partial(render, row, kind, tokenizer, context=context)
        for row, kind, context in zip(rows, conventions, contexts or [0] * len(rows), strict=True)
    ]
    if tokenizer.chat_template and Convention.MESSAGES in conventions:
        return within_limits(makes, dataclasses.asdict, _rendered)
    found: list[Rendered | DataInvalid] = []
    for make in makes:
        try:
            found.append(make())
        except DataInvalid as error:
            found.append(error)
    return found


def _rendered(content: JsonValue) -> Rendered:
    """The inverse of ``dataclasses.asdict``, for what came back from ``within_limits``."""
    match content:
        case {"text": str(text), "trained": list(parts), "bos": bool(bos), "eos": bool(eos), "answers": int(answers)}:
            trained = tuple(
                (begin, end)
                for part in parts
                if isinstance(part, list)
                for begin, end in [part]
                if isinstance(begin, int) and isinstance(end, int)
            )
            return Rendered(text=text, trained=trained, bos=bos, eos=eos, answers=answers)
    raise TypeError(f"Expected a rendered row, found {type(content).__name__}.")


def render(row: Record, convention: Convention, tokenizer: Tokenizer, *, context: int = 0) -> Rendered:
    """One validated causal-lm row as text, and which part of it is trained on.

    Args:
        context: so many turns of a conversation are not trained on, whoever speaks.
    """
    if convention is Convention.MESSAGES:
        return _render_messages(messages_of(row), tokenizer, context)
    if convention is Convention.TEXT:
        text = str(row["text"])
        return Rendered(text=text, trained=((0, len(text)),))
    if convention is Convention.ALPACA:
        template = ALPACA_INPUT if row.get("input") else ALPACA_PLAIN
        prompt = template.format(instruction=row["instruction"], input=row.get("input"))
        completion = str(row["output"])
    else:
        prompt, completion = str(row["prompt"]), str(row["completion"])
    return Rendered(text=prompt + completion, trained=((len(prompt), len(prompt) + len(completion)),))


def _render_messages(turns: Sequence[Message], tokenizer: Tokenizer, context: int) -> Rendered:
    """Through the chat template; without one, ``role: content`` lines closed by EOS after each answer."""
    if not tokenizer.chat_template:
        return _render_plain_turns(turns, tokenizer.eos_token or "", context)
    text = templated(turns, tokenizer)
    trained: list[tuple[int, int]] = []
    lost = False
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant" or i < context:
            continue
        before = templated(turns[:i], tokenizer, add_generation_prompt=True) if i else ""
        upto = templated(turns[: i + 1], tokenizer)
        # Some templates rewrite earlier turns (dropping old reasoning, say): such a turn is context, not a target.
        if text.startswith(upto) and upto.startswith(before):
            last_word = turn["content"].split()[-1:]  # a template may trim an answer, or leave out reasoning before it
            lost = bool(last_word) and last_word[0] not in text[len(before) : len(upto)]
            trained += [] if lost else [(len(before), len(upto))]
    if lost and not trained:
        raise DataInvalid(
            "Expected a chat template that writes what the assistant says, found one that leaves it out; use a base "
            "with another template, or render the text yourself and use the columns prompt and completion."
        )
    if not trained:
        raise DataInvalid(
            "Expected a chat template that writes a conversation's beginning the same whatever follows, found one "
            "that does not (some open a block of reasoning that these answers lack); render the text yourself and use "
            "the columns prompt and completion."
        )
    answers = sum(turn["role"] == "assistant" for turn in turns[context:])
    return Rendered(text=text, trained=tuple(trained), bos=False, eos=False, answers=answers)


def templated(turns: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = False) -> str:
    """A conversation as the base's chat template writes it. Raises DataInvalid when it refuses the turns."""
    with foreign(lambda said: DataInvalid(f"Expected turns that the base's chat template takes, found: {said}.")):
        return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=add_generation_prompt)


def _render_plain_turns(turns: Sequence[Message], eos: str, context: int) -> Rendered:
    text = ""
    trained: list[tuple[int, int]] = []
    for i, turn in enumerate(turns):
        text += f"{turn['role']}: "
        begin = len(text)
        answer = turn["role"] == "assistant"
        closed = answer and not turn["content"].rstrip().endswith(eos or "\n")
        text += f"{turn['content']}{eos if closed else ''}\n"
        if answer and i >= context:
            trained.append((begin, len(text)))
    return Rendered(text=text, trained=tuple(trained), eos=False, answers=len(trained))


def framed_texts(
    examples: Sequence[Rendered], tokenizer: Tokenizer, bos: int | None
) -> Iterator[tuple[TokenIds, npt.NDArray[np.bool_]]]:
    """Each example's tokens with BOS and EOS, and which of them are trained on.

    Raises:
        DataInvalid: the tokenizer refuses one of the texts.
    """
    if not examples:
        return
    with foreign(refused_by_tokenizer):
        texts = [example.text for example in examples]
        encoding = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for example, ids, offsets in zip(examples, encoding["input_ids"], encoding["offset_mapping"], strict=True):
        yield _framed(example, ids, offsets, tokenizer, bos)


def refused_by_tokenizer(said: str) -> DataInvalid:
    """What a tokenizer's own exception becomes."""
    return DataInvalid(f"Expected texts that the base's tokenizer takes, found: {said}.")


def _framed(
    example: Rendered, ids: list[object], offsets: list[object], tokenizer: Tokenizer, bos: int | None
) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
    """The tokens with BOS and EOS where they are missing, and which are trained on."""
    tokens = np.asarray(ids, dtype=np.int32)  # (T,)
    begins, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T  # (T,), (T,)
    trained = np.zeros(len(tokens), dtype=np.bool_)
    for begin, end in example.trained:
        # Any overlap counts: tokenizers merge a prompt's last space into the completion's first word.
        trained |= (begins < end) & (ends > begin)
    eos = tokenizer.eos_token_id
    # A text that a chat template rendered beforehand has both: a second one would teach what never occurs.
    if example.bos and bos is not None and not (len(tokens) and tokens[0] == bos):
        tokens, trained = np.concatenate(([np.int32(bos)], tokens)), np.concatenate(([False], trained))
    if example.eos and eos is not None and not _ends_with(example.text, tokens, tokenizer):
        tokens, trained = np.concatenate((tokens, [np.int32(eos)])), np.concatenate((trained, [True]))
    return tokens.astype(np.int32), trained


def fitted(trained: npt.NDArray[np.bool_], max_length: int, *, keep_first: bool) -> tuple[npt.NDArray[np.int64], bool]:
    """The positions to keep of an example, at most ``max_length``, and whether any was cut.

    Too long an example loses the beginning of its prompt first (a quarter of ``max_length`` of it stays), then its end.
    """
    size = len(trained)
    if size <= max_length:
        return np.arange(size), False
    lead = int(np.argmax(trained))  # tokens before the first trained one
    drop = min(size - max_length, max(0, lead - max_length // 4))
    kept = np.arange(drop, min(size, drop + max_length))
    if drop and keep_first:
        kept[0] = 0
    return kept, True


def bos_of(tokenizer: Tokenizer) -> int | None:
    """The BOS token if this tokenizer begins every text with it."""
    wrapped = tokenizer([""])["input_ids"][0]
    return tokenizer.bos_token_id if wrapped and wrapped[0] == tokenizer.bos_token_id else None


def halves(message: str) -> tuple[str, str, str]:
    """``Expected A, found B; C.`` as a problem's three parts."""
    expected, _, rest = message.removeprefix("Expected ").partition(", found")
    found, _, remedy = rest.lstrip(": ").partition("; ")
    return expected, found.rstrip("."), remedy[:1].upper() + remedy[1:]


def _ends_with(text: str, tokens: TokenIds, tokenizer: Tokenizer) -> bool:
    """Whether a text ends with EOS, white space behind it apart."""
    written = bool(tokenizer.eos_token) and text.rstrip().endswith(str(tokenizer.eos_token))
    return written and tokenizer.eos_token_id in tokens[-4:]


def expect_fast(tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer that does not say which characters a token is of."""
    if not getattr(tokenizer, "is_fast", True):
        raise DataInvalid("Expected a fast tokenizer (tokenizer.json), found a slow one; convert the base's tokenizer.")


def note_nothing_to_train(origin: str, log: ProblemLog) -> None:
    """Notes a row of which nothing is left to learn."""
    log.add(origin, "something to train on", "no token that this tokenizer knows", "Remove the row.")
