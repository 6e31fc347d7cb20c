"""The loss of a step and its gradient: some examples at a time, a language model's without its logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedpeft.data.encode import EncodedDataset
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.accelerator import products
from fedpeft.tuning.batches import Batch, Indices, collate, predictions_of
from fedpeft.tuning.cache import HiddenSource, logits_of
from fedpeft.tuning.malloc import returning_memory
from fedpeft.tuning.preference.losses import preference_losses, rewards_of
from fedpeft.tuning.row_loss import row_losses, summed_loss
from fedpeft.tuning.several.contrast import candidates_of, contrastive_losses, cosines
from fedpeft.tuning.several.sides import sides_of
from fedpeft.tuning.split_forward import SplitForward
from fedpeft.tuning.token_loss import output_withheld

__all__ = ["Objective"]


class Objective:
    """The mean loss of a step's examples.

    Args:
        union: the model; what receives gradients is chosen already (``train_only``).
        examples: this device's.
        cache: of these examples.
        logit_offset: (classes,) added to the logits.
        micro_batch: at most so many examples pass through the model at once; 0: all of a step.
        checkpointing: see ``SplitForward``.
    """

    def __init__(
        self,
        union: UnionAdapter,
        examples: EncodedDataset,
        *,
        cache: HiddenSource | None,
        logit_offset: Tensor | None,
        micro_batch: int,
        checkpointing: bool,
    ) -> None:
        self._union, self._examples, self._cache, self._offset = union, examples, cache, logit_offset
        self._micro_batch, self._checkpointing = micro_batch, checkpointing
        with output_withheld(union.model) as self._output:
            self._split = SplitForward(union, checkpointing=checkpointing)
        if logit_offset is not None:
            self._offset = logit_offset.to(self._split.device)

    def backward(self, indices: Indices) -> float:
        """Add the gradient of the mean loss of these examples and return the loss."""
        with returning_memory(self._checkpointing):
            return self._backward(indices)

    def _backward(self, indices: Indices) -> float:
        micro, examples = self._micro_batch, self._examples
        pieces = np.array_split(indices, -(-len(indices) // micro)) if micro else [indices]
        if examples.contrast is not None:
            return self._contrasted(indices, pieces, examples.contrast.scale)
        count = sum(predictions_of(examples, int(i)) for i in indices)
        total = 0.0
        for piece in pieces:
            batch = collate(examples, piece, pad_id=self._split.pad_id, device=self._split.device)
            with products(self._split.device):
                loss = self._share(batch, count)
            torch.autograd.backward([loss])
            total += loss.item()
        return total

    def _contrasted(self, indices: Indices, pieces: Sequence[Indices], scale: float) -> float:
        """Every anchor among all texts of the step, however few pass through the model at once.

        Vectors first, then the loss's gradient by them, then each piece again with its part of that (Gao 2021): the
        memory of one piece, the gradient of the whole step.
        """
        among = candidates_of(self._examples, indices)
        if len(pieces) == 1:
            loss = contrastive_losses(cosines(self._vectors(indices), among), scale).mean()
            torch.autograd.backward([loss])
            return loss.item()
        with torch.no_grad():
            parts = [self._vectors(piece) for piece in pieces]
        whole = torch.cat(parts).requires_grad_()
        loss = contrastive_losses(cosines(whole, among), scale).mean()
        torch.autograd.backward([loss])
        wanted = torch.zeros_like(whole) if whole.grad is None else whole.grad
        for piece, gradient in zip(pieces, torch.split(wanted, list(map(len, parts))), strict=True):
            torch.autograd.backward([self._vectors(piece)], [gradient])
        return loss.item()

    def _vectors(self, indices: Indices) -> Tensor:
        batch = collate(self._examples, indices, pad_id=self._split.pad_id, device=self._split.device)
        with products(self._split.device):
            return logits_of(self._split, batch, self._cache)[0]

    def _share(self, batch: Batch, count: int) -> Tensor:
        """The batch's loss summed over its predictions, over ``count``."""
        logits, labels = logits_of(self._split, batch, self._cache)
        if self._output is not None:
            if self._output.was_last(logits):
                if batch.preference is not None:
                    return self._preferred(self._output.losses(logits, labels), batch, count)
                return self._output.loss(logits, labels, count=count)
            # This model does something to its logits: they must be made, now and from now on.
            self._output, self._split = None, SplitForward(self._union, checkpointing=self._checkpointing)
            logits, labels = logits_of(self._split, batch, self._cache)
        if batch.preference is not None:
            return self._preferred(row_losses(logits, labels), batch, count)
        shifted = logits if self._offset is None else logits.float() + self._offset
        return summed_loss(shifted, labels) / count

    def _preferred(self, token_losses: Tensor, batch: Batch, count: int) -> Tensor:
        sides = sides_of(batch, pad_id=self._split.pad_id)
        return preference_losses(*rewards_of(token_losses, sides, batch)).sum() / count
