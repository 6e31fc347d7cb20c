"""Robust statistics over contributions: of single devices without secure aggregation, of bucket sums under it.

Under secure aggregation the coordinator never sees one device, so it deals the cohort at random into buckets, each
with a secure sum of its own, and takes the statistic over the bucket means (Karimireddy 2022, "bucketing"). One
bad device spoils one bucket: with f of them, more than 2 f buckets keep the median right. Every device counts alike
here: a weight of its own choice would be a way to attack. And in each block no update is longer than a few times the
median of all norms before a statistic sees it: a secure sum bounds no norm, and a statistic of single coordinates
follows a bad bucket wherever the honest ones disagree.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.config.aggregate import Aggregate
from fedpeft.entropy import generator
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId

__all__ = ["Update", "assign_buckets", "robust_mean"]

NORM_CLIP = 3.0
"""Times the median norm: room for buckets of unequal data, none for an update that is larger by orders."""

Vector = npt.NDArray[np.float64]
Update = Mapping[BlockId, Vector]


def assign_buckets(names: Sequence[str], buckets: int, *, seed: int, round_id: int) -> dict[str, int]:
    """Device name -> bucket from 1, sizes as even as can be, drawn anew for every round.

    Args:
        buckets: how many; 0: none, an empty mapping.
    """
    if not buckets:
        return {}
    order = generator(seed, "buckets", round_id).permutation(len(names))
    return {names[place]: 1 + turn % buckets for turn, place in enumerate(order)}


def robust_mean(aggregate: Aggregate, updates: Sequence[Update]) -> dict[BlockId, Vector]:
    """One update from several by ``aggregate.robust``, block by block; Krum and the norm bound judge whole updates.

    Args:
        updates: mean deltas of single devices or of buckets. A block that an update lacks was not summed there (too
            few owners): the statistic is over those that have it.

    Raises:
        RunFailed: too few updates for the statistic.
    """
    needed = 3 if aggregate.robust in {"median", "trimmed-mean"} else 4 if aggregate.robust == "krum" else 1
    if len(updates) < needed:
        raise RunFailed(f"Expected {needed} updates or more for robust={aggregate.robust}, found {len(updates)}.")
    match aggregate.robust:
        case "krum":
            return dict(updates[_krum(updates, round(aggregate.bad_fraction * len(updates)))])
        case "norm-bound":
            updates = _bounded(updates, aggregate.norm_bound)
        case _:
            pass
    blocks = dict.fromkeys(block_id for update in updates for block_id in update)
    return {
        block_id: _statistic(aggregate, np.stack([update[block_id] for update in updates if block_id in update]))
        for block_id in blocks
    }


def _statistic(aggregate: Aggregate, values: Vector) -> Vector:
    """Over axis 0 of (n, P), no row longer than ``NORM_CLIP`` times the median of their norms."""
    norms = np.sqrt(_total(np.square(values)))
    limit = NORM_CLIP * float(np.median(norms))
    values = values * np.minimum(1.0, limit / np.maximum(norms, 1e-300))[:, None]
    if aggregate.robust == "median":
        return np.asarray(np.median(values, axis=0))
    if aggregate.robust == "trimmed-mean":
        cut = min(int(np.ceil(aggregate.bad_fraction * len(values))), (len(values) - 1) // 2)
        return np.asarray(np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0))
    return np.asarray(values.mean(axis=0))


def _total(values: Vector) -> Vector:
    """Sums of rows, (n, P) -> (n,), by halves: the order of additions, so each bit, is the same on every machine."""
    width = 1 << max(0, values.shape[1] - 1).bit_length()
    halves = np.zeros((len(values), width))
    halves[:, : values.shape[1]] = values
    while halves.shape[1] > 1:
        middle = halves.shape[1] // 2
        halves = halves[:, :middle] + halves[:, middle:]
    return np.asarray(halves[:, 0])


def _krum(updates: Sequence[Update], bad: int) -> int:
    """Krum (Blanchard 2017): the update with the least sum of squared distances to its n - f - 2 nearest."""
    shared = sorted(set.intersection(*(set(update) for update in updates)))
    flat = np.stack([np.concatenate([update[block_id] for block_id in shared]) for update in updates])  # (n, P)
    squares = np.square(flat).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * flat @ flat.T  # (n, n)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : max(1, len(updates) - bad - 2)]
    return int(nearest.sum(axis=1).argmin())


def _bounded(updates: Sequence[Update], bound: float) -> list[Update]:
    """Each update scaled down to an L2 norm of ``bound``; 0: of the median of all norms."""
    norms = [float(np.sqrt(sum(np.square(part).sum() for part in update.values()))) for update in updates]
    limit = bound or float(np.median(norms))
    scales = [min(1.0, limit / norm) if norm > 0 else 1.0 for norm in norms]
    return [
        {block_id: scale * part for block_id, part in update.items()}
        for scale, update in zip(scales, updates, strict=True)
    ]
