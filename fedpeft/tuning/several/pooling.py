"""A text's vector: the mean of the last layer's states over its tokens, special ones included.

What sentence-transformers calls mean pooling. Vectors are compared by their cosine, so what leaves the program has
length 1.
"""

from torch import Tensor
from torch.nn import functional

__all__ = ["mean_of_tokens", "unit_length"]


def mean_of_tokens(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(b, s, h) -> (b, h) float32.

    Args:
        states: of the last layer.
        attention_mask: (b, s), 0 on padding; None: nothing is.
    """
    if attention_mask is None:
        return states.float().mean(1)
    mask = attention_mask[..., None].float()  # (b, s, 1)
    return (states.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def unit_length(vectors: Tensor) -> Tensor:
    """The same directions, (b, h), at length 1: their products are cosines."""
    return functional.normalize(vectors.float(), dim=-1)
