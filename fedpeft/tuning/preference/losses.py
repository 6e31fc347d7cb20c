"""Losses of answers that are preferred: DPO (Rafailov 2023), and KTO without its batch term, each against the base.

With L_w and L_l the log-probabilities that the model gives the tokens of the preferred and of the other answer, R_w and
R_l those of the base without any adapter, and the rewards r = beta (L - R):

| examples | loss | TRL |
|---|---|---|
| pairs | -log sigmoid(r_w - r_l) | DPOTrainer, ``loss_type="sigmoid"`` |
| one wanted answer | 1 - sigmoid(r_w) | KTOTrainer, ``loss_type="apo_zero_unpaired"`` |
| one unwanted answer | sigmoid(r_l) | the same |

KTO's own loss subtracts from r an estimate of a divergence, from answers put behind other examples' prompts in the same
batch. It is left out: an example's loss would depend on its neighbours, which no clipped gradient of one example
allows.

R does not change in a run: it is computed once, by a base without adapter, and kept beside the tokens.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.data.encode import IGNORED, EncodedDataset
from fedpeft.errors import RunFailed
from fedpeft.tuning.batches import Batch, Indices, bucketed, collate, lengths_of
from fedpeft.tuning.row_loss import row_losses
from fedpeft.tuning.several.sides import Sides, sides_of
from fedpeft.tuning.token_loss import output_withheld

__all__ = ["log_probabilities", "preference_losses", "preferred_rows", "rewards_of", "with_reference"]

AT_ONCE = 8
"""Examples that the base looks at together; under privacy one, so that no other one moves a bit of what it gives."""


def log_probabilities(token_losses: Tensor, sides: Sides) -> Tensor:
    """(b, 2): what each answer has, 0 where there is none; from the loss of each labelled token, by row and place."""
    labelled = (sides.batch.labels[:, 1:] != IGNORED).sum(1)  # of a row's first token nothing is told
    answer = torch.repeat_interleave(sides.example * 2 + sides.other, labelled)
    whole = token_losses.new_zeros(2 * len(sides.batch.indices))
    return -whole.index_add(0, answer, token_losses).view(-1, 2)


def rewards_of(token_losses: Tensor, sides: Sides, batch: Batch) -> tuple[Tensor, Tensor]:
    """The rewards of the preferred and the other answers, (b, 2), and which there are, (b, 2) bool.

    Raises:
        RunFailed: the examples have no reference.
    """
    wanted = batch.preference
    if wanted is None or wanted.reference is None:
        raise RunFailed("Expected examples with the base's log-probabilities, found none; ask with_reference first.")
    there = torch.zeros(len(batch.indices), 2, dtype=torch.bool, device=token_losses.device)
    there[sides.example, sides.other] = True
    reference = torch.from_numpy(wanted.reference).to(token_losses.device)
    return wanted.beta * (log_probabilities(token_losses, sides) - reference), there


def preference_losses(rewards: Tensor, there: Tensor) -> Tensor:
    """Each example's loss, (b,): see the module's table."""
    first, second = rewards.unbind(1)
    pairs = -functional.logsigmoid(first - second)
    alone = torch.where(there[:, 0], torch.sigmoid(-first), torch.sigmoid(second))
    return torch.where(there.all(1), pairs, alone)


def preferred_rows(rewards: Tensor, there: Tensor) -> Tensor:
    """(b,) bool: the preferred answer has the higher reward; of one answer, its reward has the right sign."""
    masked = rewards * there
    return masked[:, 0] > masked[:, 1]


@torch.no_grad()
def with_reference(examples: EncodedDataset, base: nn.Module, *, alone: bool = False) -> EncodedDataset:
    """The same examples with what the base says of them; themselves if they have it, or are of another task.

    Args:
        examples: of one client.
        base: the language model without any adapter.
        alone: one at a time.
    """
    wanted = examples.preference
    if wanted is None or wanted.reference is not None:
        return examples
    found: npt.NDArray[np.float32] = np.zeros((len(examples), 2), np.float32)
    pad = getattr(base.config, "pad_token_id", None) or 0
    device = next(base.parameters()).device
    for indices in _batches(examples, 1 if alone else AT_ONCE):
        batch = collate(examples, indices, pad_id=pad, device=device)
        sides = sides_of(batch, pad_id=pad)
        found[indices] = log_probabilities(_token_losses(base, sides.batch), sides).cpu().numpy()
    return replace(examples, preference=replace(wanted, reference=found))


def _batches(examples: EncodedDataset, size: int) -> Iterator[Indices]:
    if len(examples):
        order = np.arange(len(examples), dtype=np.int64)
        (batches,) = bucketed(order, lengths_of(examples), batch_size=size, window=len(order))
        yield from batches


def _token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of each labelled token, row by row, without the logits of the others."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    chosen = batch.labels[:, 1:] != IGNORED
    labels = batch.labels[:, 1:][chosen]
    with output_withheld(model) as output:
        states: Tensor = model(**inputs, use_cache=False).logits
    rows = states[:, :-1][chosen]
    if output is None:
        return row_losses(rows, labels)
    if output.was_last(states):
        return output.losses(rows, labels)
    logits: Tensor = model(**inputs, use_cache=False).logits  # it does something to its logits: they must be made
    return row_losses(logits[:, :-1][chosen], labels)
