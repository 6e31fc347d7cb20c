"""What the coordinator decides between two rounds, from the mean: each method's own part, and the head. No torch.

A choice is not linear, so no device makes it and no secure sum carries it: each device sums what a choice rests on,
the coordinator makes it from the agreed state, and it travels as blocks like everything else. Pure: the same state
and round give the same next state, so a resumed run chooses as the killed one did. Post-processing of a sum: under
differential privacy it costs nothing.
"""

import numpy as np

from fedpeft.adapter import AdapterState, flatten, unflatten
from fedpeft.aggregate.head_start import HEAD_BLOCK, classifier_of, measures_head, method_round
from fedpeft.config.adapter import Adapter
from fedpeft.errors import RunFailed

__all__ = ["between_rounds"]

_SHARPNESS = 50.0
"""A logit for each unit of cosine. Cross entropy alone would take 75 on BANKING77 and over 120 on the airline tweets; a
little less leaves the training that follows room (docs/adr/0009-class-means.md)."""


def between_rounds(state: AdapterState, adapter: Adapter, round_id: int) -> AdapterState:
    """The state that round ``round_id + 1`` begins with.

    Args:
        state: after the mean of round ``round_id``.
        round_id: from 1.
    """
    if measures_head(state.spec, adapter, round_id):
        return _head_from_means(state)
    own = method_round(state.spec, adapter, round_id)
    for method, settings in adapter.declared():
        if method.between_rounds is not None:
            state = method.between_rounds(state, settings, own)
    return state


def _head_from_means(state: AdapterState) -> AdapterState:
    """The head that the class means make: row c is ``k s (d_c - mean d)``, d_c the direction of its mean.

    What the devices summed has rows of about n_c / (n s) length, s that of a feature (``measure_class_means``), so
    their lengths add up to 1 / s: a logit is k times a difference of cosines, whatever the base and however many
    devices took part. Directions alone count, so a rare class is as likely as a common one; what is common to all
    classes goes. A class that nobody has keeps a row of zeros.

    Raises:
        RunFailed: nothing was summed.
    """
    block = state.spec[HEAD_BLOCK]
    tensors = {name: values.astype(np.float64) for name, values in unflatten(block, state[HEAD_BLOCK]).items()}
    name = classifier_of(block).name
    rows = tensors[name]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    seen = lengths[:, 0] > 0
    if not seen.any():
        raise RunFailed(
            "Expected class means from round 1, found none; let at least secagg.min_cohort organisations train the "
            'head, or use adapter.head_start = "seed".'
        )
    directions = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    directions[seen] -= directions[seen].mean(0)
    tensors[name] = _SHARPNESS * lengths.sum() * directions
    made = {name: values.astype(np.float32) for name, values in tensors.items()}
    return state.replace({HEAD_BLOCK: flatten(block, made)})
