"""[adapter.*] of the methods that learn prompts and prefixes; ``fedpeft.config.adapter`` collects them."""

from typing import Literal

from pydantic import Field

from fedpeft.config.method import MethodSection
from fedpeft.config.section import Section

__all__ = ["LlamaAdapter", "PTuning", "PTuningV2", "Prefix", "Prompt"]


class _InputSection(Section):
    """A method that adds tokens to the input: it sits below every layer."""

    length: int = Field(default=16, ge=1, le=1024, description="Virtual tokens; task.max_length and they must fit.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="Overrides train.learning_rate for these blocks."
    )


class Prompt(_InputSection):
    """Prompt tuning (Lester 2021): trained embeddings before the input. Needs adapter.layers = "all"."""

    init: Literal["vocabulary", "gaussian"] = Field(
        default="vocabulary", description="Rows of the token embedding drawn from the seed, or noise of their size."
    )


class PTuning(_InputSection):
    """P-tuning (Liu 2021): as prompt tuning, the embeddings made by a trained encoder of three matrices."""

    width: int = Field(default=128, ge=1, le=8192, description="Of the encoder's inner layers.")


class Prefix(MethodSection):
    """Prefix-tuning (Li and Liang 2021): keys and values before each layer's own, made by a trained network."""

    length: int = Field(default=16, ge=1, le=1024, description="Prefix positions of each layer.")
    width: int = Field(default=128, ge=1, le=8192, description="Of the network's inner layer.")


class PTuningV2(MethodSection):
    """P-tuning v2 (Liu 2022): keys and values before each layer's own, trained as they are."""

    length: int = Field(default=16, ge=1, le=1024, description="Prefix positions of each layer.")


class LlamaAdapter(MethodSection):
    """LLaMA-Adapter (Zhang 2023): each layer attends to a trained prompt beside its own; a gate begins at zero."""

    length: int = Field(default=10, ge=1, le=1024, description="Prompt positions of each layer.")
