"""Examples as token ids with what stands beside them: what ``encode`` makes and ``fedpeft.tuning`` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from fedpeft.data.people import Owners
from fedpeft.data.rendering import TokenIds, Tokenizer
from fedpeft.errors import DataInvalid

__all__ = ["IGNORED", "EncodedDataset", "Special", "refused_by_tokenizer"]

IGNORED = -100
"""The label of a token that is not trained on: what PyTorch's cross entropy ignores by default."""


Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDataset:
    """Token ids and labels of one client's examples.

    Args:
        input_ids: for each example its tokens, int32.
        labels: by the task's ``fedpeft.tasks.Target``: (n,) int64 or float32, (n, outputs) float32, or for each example
            one int64 label a token.
        truncated: how many examples were cut to ``max_length``.
        unknown: how many hold no token but the unknown one, apart from special tokens.
        answers: assistant turns in them; 0 without conversations.
        segments: for each example which of a pair's texts a token is of, 0 or 1; None where the tokenizer does not say.
        of_tokens: whether a token's label is its own, and not to be told from the tokens before it.
        context_answers: those of them that are not trained on, because the chat template rewrites earlier turns.
        owners: whose each is (``fedpeft.data.people``); None where the data names no people.
    """

    input_ids: tuple[TokenIds, ...]
    labels: Targets | tuple[npt.NDArray[np.int64], ...]
    truncated: int
    segments: tuple[TokenIds, ...] | None = None
    of_tokens: bool = False
    unknown: int = 0
    answers: int = 0
    context_answers: int = 0
    owners: Owners | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def joined(cls, parts: "Sequence[EncodedDataset]") -> "EncodedDataset":
        """One after the other; at least one, all of one task."""
        arrays = [part.labels for part in parts if isinstance(part.labels, np.ndarray)]
        segments = None
        if any(part.segments is not None for part in parts):
            segments = tuple(row for part in parts for row in part.segments or map(np.zeros_like, part.input_ids))
        owners = None
        if any(part.owners is not None for part in parts):  # without the column, an example is nobody's
            owners = np.concatenate(
                [np.zeros(len(part), np.uint64) if part.owners is None else part.owners for part in parts]
            )
        return cls(
            input_ids=tuple(tokens for part in parts for tokens in part.input_ids),
            labels=cast("Targets", np.concatenate(arrays))
            if arrays
            else tuple(row for part in parts for row in part.labels),
            truncated=sum(part.truncated for part in parts),
            segments=segments,
            of_tokens=parts[0].of_tokens,
            owners=owners,
        )


@dataclass(frozen=True, slots=True)
class Special:
    """The tokenizer's unknown token, and its special tokens beside it."""

    unknown: int | None
    others: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Special":
        """Those of this tokenizer."""
        unknown = getattr(tokenizer, "unk_token_id", None)
        others = [number for number in getattr(tokenizer, "all_special_ids", ()) if number != unknown]
        return cls(unknown, np.array(others, dtype=np.int64))

    def knows_nothing_of(self, tokens: TokenIds) -> bool:
        """Whether everything but special tokens is unknown."""
        if self.unknown is None or self.unknown not in tokens:
            return False
        return bool(np.isin(tokens, np.append(self.others, self.unknown)).all())


def refused_by_tokenizer(said: str) -> DataInvalid:
    """What a tokenizer's own exception becomes."""
    return DataInvalid(f"Expected texts that the base's tokenizer takes, found: {said}.")
