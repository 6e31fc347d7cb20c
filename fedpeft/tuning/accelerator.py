"""What changes on a CUDA device: products in bfloat16, and optimizer states of 8 bits in paged memory (QLoRA's way).

On a CPU everything is float32: bfloat16 products are slower there unless the processor has tiles for them,
and the paged optimizer has nothing to page. Never run on a GPU by the authors: the GPU's tests skip, and say so, where
there is none.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch

from fedpeft.errors import ResourceMissing

__all__ = ["chosen_device", "paged_adamw", "products"]


def chosen_device(accelerator: str) -> torch.device:
    """The device of ``performance.accelerator``.

    Raises:
        ResourceMissing: CUDA is asked for and not there.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ResourceMissing(
            'Expected a CUDA device for accelerator = "cuda", found none; install a CUDA build of torch (README, '
            '"Choosing torch"), or leave the key out.'
        )
    return torch.device(accelerator)


def products(device: torch.device) -> AbstractContextManager[object]:
    """Inside, matrix products on this device are computed in the type that suits it; values keep theirs."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def paged_adamw(groups: Iterable[dict[str, Any]], *, weight_decay: float) -> torch.optim.Optimizer:
    """bitsandbytes' PagedAdamW8bit.

    Raises:
        ResourceMissing: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import PagedAdamW8bit
    except ImportError as error:
        raise ResourceMissing(
            'Expected bitsandbytes for train.optimizer = "paged-adamw" on CUDA, found none; `pip install bitsandbytes` '
            'or use "adamw".'
        ) from error
    return cast("torch.optim.Optimizer", PagedAdamW8bit(list(groups), weight_decay=weight_decay))
