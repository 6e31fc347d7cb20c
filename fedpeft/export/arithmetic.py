"""Adapter arithmetic on tensors: linear, cat, SVD, TIES, DARE. numpy only.

A low-rank change is scale * B A. The sum of several, sum_i w_i scale_i B_i A_i, is

- ``cat``: exact, A and B side by side; the rank is the sum of the ranks.
- ``svd``: its best approximation of a chosen rank, from a QR of the factors and an SVD of the small core: no matrix
  of the model's size is made.
- ``linear``: A and B each added up (Ilharco et al. 2023 on the factors). Exact when all share one A, as the adapters
  of runs with one seed do; else (sum a_i A_i) (sum b_i B_i) with a_i b_i = w_i scale_i, as the peft library does it,
  which has cross terms.
- ``ties`` (Yadav et al. 2023): of each factor only the largest entries (``density`` of them); then per entry the sign
  of the sum, and the mean of the weighted entries that agree with it.
- ``dare`` (Yu et al. 2024): of each factor a random share ``density``, divided by it; then linear.

TIES and DARE work on B alone when A is shared. Tests compare every rule with peft's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedpeft.errors import ConfigInvalid

__all__ = ["LowRank", "Rule", "combine"]

Matrix = npt.NDArray[np.float64]
Rule = Literal["linear", "cat", "svd", "ties", "dare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """One change of a matrix, scale * up down.

    Args:
        down: A, (r, d_in).
        up: B, (d_out, r).
        scale: lora_alpha / r.
    """

    down: Matrix
    up: Matrix
    scale: float


def combine(
    changes: Sequence[LowRank],
    weights: Sequence[float],
    rule: Rule,
    *,
    density: float = 1.0,
    rank: int | None = None,
    draw: np.random.Generator | None = None,
) -> LowRank:
    """The weighted sum of changes of one matrix, by ``rule``, with scale 1.

    Args:
        changes: at least one, of one shape but for the rank.
        weights: one each; negative ones subtract.
        density: share of the entries that TIES and DARE keep, (0, 1].
        rank: of ``svd``; None: the largest of the changes' ranks.
        draw: for ``dare``.

    Raises:
        ConfigInvalid: the rule needs equal ranks, or ``dare`` no generator.
    """
    if rule == "cat":
        down = np.concatenate([change.down for change in changes])
        up = np.concatenate([w * one.scale * one.up for w, one in zip(weights, changes, strict=True)], axis=1)
        return LowRank(down=down, up=up, scale=1.0)
    if rule == "svd":
        whole = combine(changes, weights, "cat")
        return _truncated(whole, rank or max(len(change.down) for change in changes))
    if len({change.down.shape for change in changes}) > 1:
        ranks = ", ".join(str(len(change.down)) for change in changes)
        raise ConfigInvalid(f"Expected equal ranks for the rule {rule}, found {ranks}; use svd or cat.")
    first = changes[0].down
    if all(np.array_equal(change.down, first) for change in changes):
        own = [w * change.scale for w, change in zip(weights, changes, strict=True)]
        up = _merged([change.up for change in changes], own, rule, density, draw)
        return LowRank(down=first, up=up, scale=1.0)
    strengths = [w * change.scale for w, change in zip(weights, changes, strict=True)]
    roots = [math.sqrt(abs(strength)) for strength in strengths]
    signed = [math.copysign(root, strength) for root, strength in zip(roots, strengths, strict=True)]
    down = _merged([change.down for change in changes], signed, rule, density, draw)
    up = _merged([change.up for change in changes], roots, rule, density, draw)
    return LowRank(down=down, up=up, scale=1.0)


def _merged(
    tensors: Sequence[Matrix], weights: Sequence[float], rule: Rule, density: float, draw: np.random.Generator | None
) -> Matrix:
    strengths = np.asarray(weights, np.float64).reshape(-1, *([1] * tensors[0].ndim))
    if rule == "ties":
        kept = np.stack([_largest(tensor, density) for tensor in tensors])
        agrees = np.sign(kept) == np.where(kept.sum(axis=0) >= 0, 1.0, -1.0)
        total: Matrix = (kept * strengths * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
        return total
    if rule == "dare":
        if draw is None:
            raise ConfigInvalid("Expected a generator for the rule dare, found none.")
        thinned = [tensor * (draw.random(tensor.shape) < density) / density for tensor in tensors]
        return np.asarray((np.stack(thinned) * strengths).sum(axis=0))
    return np.asarray((np.stack(tensors) * strengths).sum(axis=0))


def _largest(tensor: Matrix, density: float) -> Matrix:
    """The entries of largest size, the rest zero."""
    count = int(density * tensor.size)
    flat = tensor.reshape(-1)
    kept = np.zeros_like(flat)
    chosen = np.argsort(-np.abs(flat), kind="stable")[:count]
    kept[chosen] = flat[chosen]
    return kept.reshape(tensor.shape)


def _truncated(change: LowRank, rank: int) -> LowRank:
    """The best approximation of rank at most ``rank``; both factors take the root of each singular value."""
    left, upper = np.linalg.qr(change.up)  # (d_out, R), (R, R)
    right, lower = np.linalg.qr(change.down.T)  # (d_in, R), (R, R)
    u, sizes, v = np.linalg.svd(upper @ lower.T)
    rank = min(rank, len(sizes))
    roots = np.sqrt(sizes[:rank])
    return LowRank(down=(roots[:, None] * v[:rank]) @ right.T, up=left @ (u[:, :rank] * roots), scale=change.scale)
