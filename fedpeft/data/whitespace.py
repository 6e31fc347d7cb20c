"""A tokenizer that splits at white space: for lengths before a base model is chosen, and for tests.

Its counts are words, about three quarters of what a model's tokenizer would count for English prose and
far less for code; whoever shows them says so. It has no chat template and no beginning token.
"""

import re
import zlib
from collections.abc import Sequence

from fedpeft.data.tasks import Message

__all__ = ["WhitespaceTokenizer"]

EOS = 1
FIRST_WORD = 2


class WhitespaceTokenizer:
    """Fulfils ``fedpeft.data.Tokenizer``; a word's id is a checksum of it, the same everywhere."""

    is_fast = True
    bos_token_id: int | None = None
    eos_token_id: int | None = EOS
    eos_token: str | None = "</s>"  # noqa: S105
    chat_template: str | None = None

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
    ) -> dict[str, list[list[object]]]:
        """Words as ids, and where they are; adds no special tokens."""
        limit = max_length if truncation else None
        if text_pair is not None:
            text = [f"{one} {other}" for one, other in zip(text, text_pair, strict=True)]
        words = [[*re.finditer(r"\S+", one)][:limit] for one in text]
        ids: list[list[object]] = [[self.word_id(match.group()) for match in line] for line in words]
        offsets: list[list[object]] = [[match.span() for match in line] for line in words]
        return {"input_ids": ids, "offset_mapping": offsets}

    def apply_chat_template(
        self, conversation: Sequence[Message], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        """Never called: there is no template."""
        raise NotImplementedError("Expected a tokenizer with a chat template, found the white-space one.")

    @staticmethod
    def word_id(word: str) -> int:
        """A word's id, 31 bits."""
        return FIRST_WORD + zlib.crc32(word.encode("utf-8", "surrogatepass")) % (2**31 - FIRST_WORD - 1)
