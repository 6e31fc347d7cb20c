"""Notices a state that no training makes: one that is too far from the state of the round before.

Attacks through the state need one that training does not come to: scales at which rounding is amplified, or a module
that imprints single examples. A device cannot know what the others sent, but it knows how far optimizers go in so many
steps. What a round measures instead of training it (class means, a gradient start) is no step and is not compared. The
last state is kept in memory alone: after a restart the first round is not compared.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.schedule import measured_blocks, round_of
from fedpeft.errors import PolicyRefused
from fedpeft.ids import BlockId
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.round.rates.search import MOST, follows_search

__all__ = ["StateWatch"]

Vector = npt.NDArray[np.float32]
NO_CONTROLS: Mapping[BlockId, Vector] = MappingProxyType({})


class StateWatch:
    """Compares the states of one run.

    Args:
        most: root mean square by which a block may move, in learning rates times local steps; None: by any.
    """

    def __init__(self, most: float | None) -> None:
        self._most = most
        self._last: tuple[str, int, AdapterState] | None = None

    def expect_near(
        self, plan: LearningPlan, state: AdapterState, first_step: int, controls: Mapping[BlockId, Vector] = NO_CONTROLS
    ) -> None:
        """Returns if this state may follow the last one, and remembers it.

        Args:
            first_step: of the round that begins with it.
            controls: SCAFFOLD's, each of which leads every step of the round as a gradient does: a crafted one makes
                of any state a crafted one before the second step.

        Raises:
            PolicyRefused: a block moved further than ``most``, or a control leads further; the last state stays
                remembered.
        """
        if self._most is None:
            return
        for block_id, control in controls.items():
            if not (found := _root_mean_square(control)) <= self._most:
                raise PolicyRefused(
                    f"Expected a control of {block_id} within policy.max_state_step={self._most:g}, found {found:.3g}: "
                    "no training leads so far."
                )
        last = self._last
        if last is not None and last[0] == plan.run_id and last[1] < first_step:
            steps = plan.train.local_steps
            rounds = range(round_of(last[1], steps), round_of(first_step, steps))
            measured = frozenset[BlockId]().union(*(measured_blocks(state.spec, plan.adapter, one) for one in rounds))
            blocks = [block.block_id for block in state.spec.blocks if block.block_id not in measured]
            largest = MOST if any(follows_search(plan, state.spec, one) for one in rounds) else 0.0
            for block_id, rate in learning_rates(plan, state.spec, blocks, scale=largest).items():
                moved = np.subtract(state[block_id], last[2][block_id], dtype=np.float64)
                found = _root_mean_square(moved) / (rate * (first_step - last[1]))
                if not found <= self._most:
                    raise PolicyRefused(
                        f"Expected {block_id} within policy.max_state_step={self._most:g} learning rates a step of the "
                        f"state before, found {found:.3g}: no training goes so far."
                    )
        self._last = plan.run_id, first_step, state


def _root_mean_square(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
