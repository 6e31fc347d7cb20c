"""The form of peft that holds one method alone: what its file says of writing and reading it. Does not import peft."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

__all__ = ["PREFIX", "Arrays", "Held", "OwnForm", "as_array"]

Arrays = dict[str, npt.NDArray[np.float32]]
Held = Mapping[str, Tensor]
"""A directory's tensors by name, without ``PREFIX``."""

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnForm:
    """One ``peft_type`` for one method; the class head and tuned norms go beside it (``fedpeft.export.peft_format``).

    Args:
        peft_type: of ``adapter_config.json``.
        write: the method's tensors into the dictionary, with ``PREFIX``; returns its settings.
        read: a replica's parts set to what ``write`` wrote.
        on_turned: whether peft takes it on a Conv1D, whose weight is transposed.
    """

    peft_type: str
    write: Callable[[nn.Module, Arrays], dict[str, object]]
    read: Callable[[nn.Module, Held], None]
    on_turned: bool = True


def as_array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A contiguous float32 array on the CPU."""
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())
