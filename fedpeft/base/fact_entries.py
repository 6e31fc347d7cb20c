"""What a tokenizer does, as a base says it: below ``facts``, which asks ``tokenizer`` for it."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Entry", "TokenizerFacts"]


class Entry(BaseModel):
    """Frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TokenizerFacts(Entry):
    """What the tokenizer does."""

    tokens: int = Field(description="Entries of the vocabulary, special tokens included.")
    largest_id: int
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None = Field(description="None: devices pad with the end-of-text token.")
    adds_bos: bool = Field(description="Whether a plainly encoded text begins with the beginning-of-text token.")
    adds_eos: bool
    has_chat_template: bool
    probe_tokens: int = Field(description="Tokens of a sentence in three languages, with digits.")
    probe_unknown: int = Field(description="How many of them are the unknown token.")
