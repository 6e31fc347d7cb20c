"""Gradient inversion: the text and the label of one example, read from the update that one device made of it.

For the demonstration in docs/privacy.md. The attacker is whoever holds a single device's update: a coordinator without
secure aggregation. It knows the base, the adapter's frozen A and the state that training began with, and how long the
text is; nothing else. One step of SGD on one text.

- Text (after Petrov et al. 2024, DAGER): the gradient of LoRA's B in the lowest layer is a sum of outer products
  g_t (A x_t)^T over tokens t. Its row space is spanned by the A x_t, and x_t is one of vocabulary many vectors at each
  position: whichever lies in that space was the token. Works while the text has fewer tokens than LoRA has rank.
- Label: the gradient of the head's bias is softmax minus one-hot, so the one negative entry is the label (Zhao et al.
  2020, iDLG).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.entropy import os_entropy
from fedpeft.methods import UnionAdapter
from fedpeft.methods.lora import LoraPart
from fedpeft.ring import BlockEncoding, RingParams, SumRange
from fedpeft.secagg.masks import Mask, apply_masks, rounding_bits
from fedpeft.secagg.primitives import Secret
from fedpeft.testing.lying_coordinator import read_unchecked

__all__ = ["TextAttack", "label_of", "masked"]


@dataclass(frozen=True, slots=True)
class TextAttack:
    """What an attacker prepares once for a base and its adapter.

    Args:
        candidates: A x of every token at each position, of length one, (positions, vocabulary, r).
    """

    candidates: npt.NDArray[np.float32]

    @classmethod
    def prepare(cls, union: UnionAdapter, part: LoraPart, *, positions: int) -> "TextAttack":
        """From the public base.

        Args:
            union: a BERT with LoRA in its lowest layer.
            part: LoRA of that layer's values (or keys).
            positions: of the longest text.
        """
        found = []
        embeddings = union.model.base_model.embeddings  # type: ignore[union-attr]
        words: nn.Embedding = embeddings.word_embeddings  # type: ignore[union-attr, assignment]
        with torch.no_grad():
            for place in range(positions):
                ids = torch.arange(words.num_embeddings)[:, None]  # every token as a text of one, at this position
                at: Tensor = embeddings(input_ids=ids, position_ids=torch.full_like(ids, place))[:, 0]  # type: ignore[operator]
                narrow = nn.functional.linear(at, part.factors()[0])  # (vocabulary, r)
                found.append(nn.functional.normalize(narrow, dim=1).numpy())
        return cls(np.stack(found))

    def read(self, update: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.int64]:
        """The most likely token at each position, (length,); a guess where nothing can be told.

        Args:
            update: of B, (d_out, r); any scale and sign.
            length: tokens of the text, below r.
        """
        return self.likeliest(update, length, 1)[:length, 0]

    def likeliest(self, update: npt.NDArray[np.float64], tokens: int, count: int) -> npt.NDArray[np.int64]:
        """So many tokens at each position, (positions, count), the likeliest first: for a sum over several texts.

        Args:
            update: of B, (d_out, r); any scale and sign.
            tokens: of all texts together; where there are more than r their space is everything.
            count: of tokens at each position.
        """
        rows = np.linalg.svd(update, full_matrices=False)[2][:tokens]  # (tokens, r): spans the tokens' A x
        inside = np.square(self.candidates @ rows.T.astype(np.float32)).sum(2)  # (positions, vocabulary)
        some = np.argpartition(-inside, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(inside, some, 1), axis=1)
        found: npt.NDArray[np.int64] = np.take_along_axis(some, order, 1)
        return found


def label_of(update: npt.NDArray[np.float64]) -> int:
    """The label of the one example, from what the head's bias moved by, (classes,): the class that went up."""
    return int(np.argmax(update))


def masked(delta: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """What the coordinator holds of one device under the secure sum, read as if it were no sum of masks. (P,)."""
    encoding = BlockEncoding(params=RingParams(bits=32, addends=3), ranges=(SumRange(length=len(delta), max_abs=4.0),))
    words = encoding.encode(delta.astype(np.float32), rounding_bits(os_entropy(32)))
    apply_masks(words, [Mask(Secret(os_entropy(32)), add=True), Mask(Secret(os_entropy(32)), add=False)])
    return read_unchecked(encoding, words)
