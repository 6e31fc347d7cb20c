"""A device's part in measuring a run's learning rate: the mean model's loss along the cohort's first step."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.round.rates.search import PROBED, probe_states
from fedpeft.tuning import evaluate
from fedpeft_client.training.examples import Prepared

if TYPE_CHECKING:
    from fedpeft.methods import UnionAdapter

__all__ = ["losses_along"]


def losses_along(
    union: "UnionAdapter", first: AdapterState, received: AdapterState, examples: Prepared
) -> npt.NDArray[np.float64]:
    """The mean held-out loss at each multiple of the step, nats; the model then holds what was received.

    Args:
        union: the model.
        first: what the run began with.
        received: what the mean of the devices' first steps made of it.
        examples: this device's, some of them held out.
    """
    losses = []
    for moved in probe_states(first, received):
        union.load(moved)
        found = evaluate(
            union, examples.held_out, limit=PROBED, batch_size=examples.eval_batch, cache=examples.eval_cache
        )
        losses.append(found.loss_sum / found.examples if found.examples else np.nan)
    union.load(received)
    return np.array(losses)
