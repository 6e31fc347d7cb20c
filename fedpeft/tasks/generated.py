"""What a language model writes, held against what should have been written: ROUGE-L and exact match.

**ROUGE-L** (Lin 2004) is over the words of both texts: with L the length of their longest common subsequence, precision
P = L / words of the answer, recall R = L / words of the reference, and the score F = 2 P R / (P + R); 0 where there is
no common word. It is that of the package rouge-score without stemming (tests/tasks/test_generated.py). Words are runs
of letters and digits in lower case, as there; there only a to z count, so that a Greek text has no words at all. Here
every script's letters do, and in scripts that are written without spaces each character is a word.

**Exact match** is 1 where both texts are equal once runs of white space are one space and none is at an end; capitals
and punctuation count.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.tasks.measure import STEPS, Floats, Lanes

__all__ = ["GENERATED", "Generated", "Generation", "exact_match", "rouge_l", "words_in"]

GENERATED = ("rouge_l", "exact_match")
"""The metrics that need generation."""

_NO_SPACES = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W_{_NO_SPACES}]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How much is generated in an evaluation.

    Args:
        rows: of so many held-out examples, always the same ones.
        max_new_tokens: an answer is cut at so many.
    """

    rows: int
    max_new_tokens: int


def words_in(text: str) -> list[str]:
    """The words that ROUGE-L compares.

    Example:
        >>> words_in("The_Cat's 2nd, Café 東京")
        ['the', 'cat', 's', '2nd', 'café', '東', '京']
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def rouge_l(reference: str, answer: str) -> float:
    """The F score of the longest common subsequence of words, in [0, 1].

    Example:
        >>> rouge_l("the cat sat on the mat", "the mat")
        0.5
    """
    wanted, found = words_in(reference), words_in(answer)
    common = _longest_common(wanted, found)
    return 2 * common / (len(wanted) + len(found)) if common else 0.0


def exact_match(reference: str, answer: str) -> bool:
    """Whether both say the same, white space aside."""
    return reference.split() == answer.split()


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest sequence of words that both hold in this order."""
    best = [0] * (len(other) + 1)
    for word in one:
        before = 0  # best[j] of the row above
        for j, against in enumerate(other, 1):
            above = best[j]
            best[j] = before + 1 if word == against else max(above, best[j - 1])
            before = above
    return best[-1]


class Generated:
    """Both scores of the answers that were written."""

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: the means of both scores, then whether anything was generated."""
        return (Lanes(3, 1.0, STEPS),)

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``Measure``.

        Args:
            scores: ROUGE-L and exact match of each answer, (n, 2).
            truth: not read.
            example: which example each is of.
        """
        return np.concatenate([scores.astype(np.float64).sum(0), [len(scores)]])

    def metrics(self, means: Floats) -> dict[str, float]:
        """``rouge_l`` and ``exact_match``, over the devices that generated; nothing where none did."""
        if means[2] <= 0:
            return {}
        return {name: float(np.clip(value / means[2], 0.0, 1.0)) for name, value in zip(GENERATED, means, strict=False)}
