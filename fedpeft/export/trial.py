"""Whether plain peft makes of an exported directory the model that was trained: tried, on a base that is loaded anew.

A replica of the trained model would share what the files forgot. Here the base comes from its artifact with another
head, so whatever is not in the files is missing.
"""

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.base import BaseArtifact, load_model
from fedpeft.base.architecture import form_of, quiet_transformers, values_of
from fedpeft.grafting.expert_views import ExpertView
from fedpeft.methods.union import UnionAdapter

__all__ = ["agrees", "peft_apart", "problem_of"]

_LOG = logging.getLogger(__name__)
_ANOTHER_HEAD = 0x5EED
EXACT, ROUNDED = 1e-3, 5e-2  # of the largest logit: float32 on a CPU, and where products are rounded to bfloat16


@torch.no_grad()
def peft_apart(
    union: UnionAdapter, directory: Path, artifact: BaseArtifact, labels: tuple[str, ...], inputs: Mapping[str, Tensor]
) -> float:
    """The largest difference of the logits of peft's model from the trained one's; infinity: peft does not load it.

    Args:
        union: as trained.
        directory: with its files.
        artifact: of its base.
        labels: the classes; empty for a language model.
        inputs: of the model.
    """
    from peft import PeftModel

    form = form_of(union.model)
    base = load_model(
        artifact,
        task=form,
        labels=labels,
        head_seed=_ANOTHER_HEAD,
        # peft changes experts' matrices as parameters, which a packed base does not have.
        residency="dense" if any(isinstance(one, ExpertView) for one in union.model.modules()) else "quantized",
        problem_type=problem_of(union),
    )
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(base, directory).eval()
            theirs = values_of(model(**{name: value.cpu() for name, value in inputs.items()}))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, NotImplementedError) as error:
        _LOG.info("peft does not load this adapter: %s", error)
        return math.inf
    ours = values_of(union.model(**inputs)).cpu()
    if ours.shape != theirs.shape:
        return math.inf
    return float((ours.float() - theirs.float()).abs().max())


def problem_of(union: UnionAdapter) -> str:
    """transformers' name of the loss, of a classifier; empty: the model has none."""
    return str(getattr(union.model.config, "problem_type", None) or "")


@torch.no_grad()
def agrees(apart: float, union: UnionAdapter, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a difference is one of rounding alone."""
    logits = values_of(union.model(**inputs))
    rounded = union.adapter.dtype == "bfloat16" or logits.device.type != "cpu"
    return apart <= (ROUNDED if rounded else EXACT) * max(1.0, float(logits.abs().max()))
