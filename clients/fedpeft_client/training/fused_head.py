"""What TRL asks a causal model for since 1.16: each token's log-probability, in the place of logits.

Its trainers patch the model that they are given at their making. The federation's base comes later and has adapters,
perhaps on its head, so what is asked is answered from the model's own logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.data.encode import IGNORED

__all__ = ["fused_head"]


@contextmanager
def fused_head(model: nn.Module) -> Iterator[None]:
    """Within it the model understands ``fused_lm_head=True``; all other calls are what they were."""
    own, before = model.forward, model.__dict__.get("forward")

    @wraps(own)  # a Trainer reads from the signature which columns of its data the model takes
    def forward(*args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return own(*args, **inputs)
        labels, shifted = inputs.pop("labels", None), inputs.pop("shift_labels", None)
        inputs.pop("num_items_in_batch", None)
        answer = own(*args, **inputs)
        logits = answer.logits if shifted is not None else answer.logits[:, :-1]
        return _of_tokens(logits, labels[:, 1:] if shifted is None else shifted, getattr(answer, "aux_loss", None))

    model.forward = forward
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if before is not None:  # else the class's own is there again
            model.forward = before


def _of_tokens(logits: Tensor, labels: Tensor, aux_loss: Tensor | None) -> SimpleNamespace:
    """(b, s, v) and (b, s) -> everything (b, s), zero where nothing is learnt."""
    mask = labels != IGNORED
    logs = torch.log_softmax(logits.float(), dim=-1)
    log_probs = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * mask
    with torch.no_grad():
        entropy = -(logs.exp() * logs).sum(-1) * mask
        is_top1 = (logs.argmax(-1) == labels) & mask
    loss = -log_probs.sum() / mask.sum().clamp(min=1)
    return SimpleNamespace(
        loss=loss, log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask, aux_loss=aux_loss
    )
