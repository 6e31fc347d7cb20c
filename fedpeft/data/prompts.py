"""A question for a trained language model, written as the examples were that it was trained on.

One rendering serves training and use: the tokens that ``encode`` makes of a row begin with those made here of its
question (tests/data/test_prompts.py), but for a last token that the tokenizer merges with the answer's beginning.
"""

from collections.abc import Sequence

import numpy as np

from fedpeft.data.encode import bos_of
from fedpeft.data.encode_sources import source_tokens
from fedpeft.data.limited import within_limits
from fedpeft.data.rendering import ALPACA_INPUT, ALPACA_PLAIN, TokenIds, Tokenizer, templated
from fedpeft.data.row_checks import ROLES
from fedpeft.data.tasks import Message
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention

__all__ = ["answer_ends", "conversation_tokens", "question_tokens", "usual_convention"]

_PROBE = "answer"


def usual_convention(tokenizer: Tokenizer) -> Convention:
    """How to ask where nothing says how the examples were written: by the base's chat template, else as it stands."""
    return Convention.MESSAGES if tokenizer.chat_template else Convention.PROMPT_COMPLETION


def question_tokens(text: str, convention: Convention, tokenizer: Tokenizer, *, context: str = "") -> TokenIds:
    """The tokens after which an answer begins, (T,).

    Args:
        text: what is asked; for ``messages`` the user's turn, for ``instruction/input/output`` the instruction.
        convention: of the examples that the adapter was trained on.
        tokenizer: the base's.
        context: the ``input`` of an instruction.

    Raises:
        DataInvalid: classification has no answer in words, the chat template refuses the turn, or nothing is asked.
        ConfigInvalid: the chat template takes without end.
    """
    match convention:
        case Convention.MESSAGES:
            return conversation_tokens(({"role": "user", "content": text},), tokenizer)
        case Convention.ALPACA:
            template = ALPACA_INPUT if context else ALPACA_PLAIN
            text = template.format(instruction=text, input=context)
        case Convention.SOURCE_TARGET:
            return _nonempty(source_tokens([text], tokenizer)[0])
        case Convention.TEXT_LABEL:
            raise DataInvalid("Expected the examples of a language model, found text with labels.")
        case _:
            pass
    return _begun(text, tokenizer)


def conversation_tokens(turns: Sequence[Message], tokenizer: Tokenizer) -> TokenIds:
    """The tokens after which the assistant's next turn begins, (T,): by the chat template, or as plain lines.

    Args:
        turns: ``role`` and ``content`` each; the last is not the assistant's.
        tokenizer: the base's.

    Raises:
        DataInvalid: no turn, a role that no example has, an answer as the last turn, or the template refuses them.
        ConfigInvalid: the chat template takes without end.
    """
    if not turns or turns[-1]["role"] == "assistant":
        raise DataInvalid(
            "Expected a conversation that ends with a turn of the user, found none, or an answer at its end."
        )
    if unknown := [turn["role"] for turn in turns if turn["role"] not in ROLES]:
        raise DataInvalid(f"Expected turns of the roles {', '.join(ROLES)}, found {unknown[0]!r:.40}.")
    if not tokenizer.chat_template:
        closing = tokenizer.eos_token or ""
        lines = (f"{t['role']}: {t['content']}{closing if t['role'] == 'assistant' else ''}\n" for t in turns)
        return _begun("".join(lines) + "assistant: ", tokenizer)
    made = _within_limits(turns, tokenizer)
    # A template writes its own BOS.
    return _nonempty(np.asarray(tokenizer([made], add_special_tokens=False)["input_ids"][0], dtype=np.int32))


def answer_ends(convention: Convention, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that close an answer: EOS, and for ``messages`` the mark that the chat template puts behind a turn.

    A base's EOS is often another token (SmolLM2: ``<|endoftext|>``) than the one that its template ends turns with;
    after training on conversations a model writes the latter.
    """
    ends = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if convention is not Convention.MESSAGES or not tokenizer.chat_template:
        return frozenset(ends)
    question = {"role": "user", "content": "question"}
    try:
        open_, closed = (
            _within_limits(turns, tokenizer, asking=False)
            for turns in ((question,), (question, {"role": "assistant", "content": _PROBE}))
        )
    except DataInvalid:
        return frozenset(ends)
    _, _, behind = closed.removeprefix(open_).rpartition(_PROBE)
    ids = np.asarray(tokenizer([behind], add_special_tokens=False)["input_ids"][0] if behind else (), np.int64)
    special = set(getattr(tokenizer, "all_special_ids", ())) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    return frozenset(ends | ({int(ids[0])} & special if len(ids) else set()))


def _within_limits(turns: Sequence[Message], tokenizer: Tokenizer, *, asking: bool = True) -> str:
    (made,) = within_limits([lambda: templated(turns, tokenizer, add_generation_prompt=asking)], str, str)
    if isinstance(made, DataInvalid):
        raise made
    return made


def _begun(text: str, tokenizer: Tokenizer) -> TokenIds:
    """A text to go on with, behind BOS; in training its last space is a part of the answer's first token."""
    ids = np.asarray(tokenizer([text.rstrip(" ")], add_special_tokens=False)["input_ids"][0], dtype=np.int32)
    bos = bos_of(tokenizer)
    if bos is not None and not (len(ids) and ids[0] == bos):
        ids = np.concatenate(([np.int32(bos)], ids)).astype(np.int32)
    return _nonempty(ids)


def _nonempty(ids: TokenIds) -> TokenIds:
    if not len(ids):
        raise DataInvalid("Expected a prompt, found an empty text.")
    return ids
