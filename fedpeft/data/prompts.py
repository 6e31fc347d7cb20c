"""A question for a trained language model, written as the examples were that it was trained on.

One rendering serves training and use: the tokens that ``encode`` makes of a row begin with those made here of its
question (tests/data/test_prompts.py), but for a last token that the tokenizer merges with the answer's beginning.
"""

import numpy as np

from fedpeft.data.encode import bos_of
from fedpeft.data.limited import within_limits
from fedpeft.data.rendering import ALPACA_PLAIN, TokenIds, Tokenizer, templated
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention

__all__ = ["question_tokens"]


def question_tokens(text: str, convention: Convention, tokenizer: Tokenizer) -> TokenIds:
    """The tokens after which an answer begins, (T,).

    Args:
        text: what is asked; for ``messages`` the user's turn, for ``instruction/input/output`` the instruction.
        convention: of the examples that the adapter was trained on.
        tokenizer: the base's.

    Raises:
        DataInvalid: classification has no answer in words, the chat template refuses the turn, or nothing is asked.
        ConfigInvalid: the chat template takes without end.
    """
    begins = True
    match convention:
        case Convention.MESSAGES if tokenizer.chat_template:
            turns = ({"role": "user", "content": text},)
            (made,) = within_limits([lambda: templated(turns, tokenizer, add_generation_prompt=True)], str, str)
            if isinstance(made, DataInvalid):
                raise made
            text, begins = made, False  # a template writes its own BOS
        case Convention.MESSAGES:
            text = f"user: {text}\nassistant: "
        case Convention.ALPACA:
            text = ALPACA_PLAIN.format(instruction=text)
        case Convention.TEXT_LABEL:
            raise DataInvalid("Expected the examples of a language model, found text with labels.")
        case _:
            pass
    if begins:  # in training the last space is a part of the answer's first token
        text = text.rstrip(" ")
    ids = np.asarray(tokenizer([text], add_special_tokens=False)["input_ids"][0], dtype=np.int32)
    bos = bos_of(tokenizer)
    if begins and bos is not None and not (len(ids) and ids[0] == bos):
        ids = np.concatenate(([np.int32(bos)], ids)).astype(np.int32)
    if not len(ids):
        raise DataInvalid("Expected a question, found an empty text; nothing can follow it.")
    return ids
