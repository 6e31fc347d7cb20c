"""The loss of texts that belong together: every anchor is to find its own among all other texts of its batch.

With unit vectors a_i, p_j, n_j of the anchors, positives and negatives of a batch, and a scale s:

    loss_i = -log( exp(s a_i p_i) / sum over c in {p_1 ... p_b, n_1 ...} of exp(s a_i c) )

InfoNCE (van den Oord 2018) with the other examples as negatives (Henderson 2017); sentence-transformers'
``MultipleNegativesRankingLoss`` (tests/tuning/test_contrast.py holds loss and gradients against it). Where that library
asks for batches without duplicates, a text is left out of an anchor's sum here if it is no negative for it: the anchor
itself, or what any example of the batch says belongs to it.

An example's loss depends on its batch, so there is no gradient of one example that could be clipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import ConfigInvalid
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.several.pooling import unit_length

__all__ = ["Candidates", "candidates_of", "contrastive_losses", "cosines", "refuse_alone"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Which texts of some examples an anchor is compared with. Texts are numbered by example, and as in its row.

    Args:
        anchors: the number of each example's anchor, (b,).
        others: the numbers of the positives, in order of the examples, then of the negatives, (c,); c >= b.
        excluded: (b, c) bool: the text is no negative for the anchor, and not its own positive either.
    """

    anchors: Tensor
    others: Tensor
    excluded: Tensor


def candidates_of(examples: EncodedDataset, indices: Indices) -> Candidates:
    """Of these examples, which are all of a batch or a group."""
    rows = [_texts(examples, int(index)) for index in indices]
    firsts = torch.tensor([0, *map(len, rows)], dtype=torch.int64).cumsum(0)[:-1]
    with_negative = [i for i, row in enumerate(rows) if len(row) > 2]
    others = torch.cat([firsts + 1, firsts[with_negative] + 2])
    found = [row[1] for row in rows] + [rows[i][2] for i in with_negative]
    belongs: dict[bytes, set[bytes]] = {}
    for anchor, own, *_ in rows:
        belongs.setdefault(anchor, {anchor}).add(own)
    excluded = [[j != i and text in belongs[row[0]] for j, text in enumerate(found)] for i, row in enumerate(rows)]
    return Candidates(firsts, others, torch.tensor(excluded, dtype=torch.bool))


def cosines(vectors: Tensor, among: Candidates) -> Tensor:
    """(b, c): of each anchor with each other text; -inf where it is not compared.

    Args:
        vectors: of all texts, (m, h).
        among: whose texts they are.
    """
    units = unit_length(vectors)
    found = units[among.anchors.to(units.device)] @ units[among.others.to(units.device)].T
    return found.masked_fill(among.excluded.to(units.device), float("-inf"))


def contrastive_losses(found: Tensor, scale: float) -> Tensor:
    """(b,): see the module; ``found`` are ``cosines``."""
    own = torch.arange(len(found), device=found.device)
    return functional.cross_entropy(found * scale, own, reduction="none")


def refuse_alone(examples: EncodedDataset) -> None:
    """Refuses gradients of single examples.

    Raises:
        ConfigInvalid: the loss of these compares an example with others.
    """
    if examples.contrast is not None:
        raise ConfigInvalid(
            "Expected examples with a loss of their own for private steps, found texts that are compared with a whole "
            'batch; set privacy.unit = "client".'
        )


def _texts(examples: EncodedDataset, index: int) -> list[bytes]:
    ids, segments = examples.input_ids[index], (examples.segments or ())[index]
    return [ids[segments == kind].tobytes() for kind in range(int(segments.max()) + 1)]
