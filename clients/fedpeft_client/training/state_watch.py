"""Notices a state that no training makes: one that is too far from the state of the round before.

Attacks through the state need one that training does not come to: scales at which rounding is amplified, or a module
that imprints single examples. A device cannot know what the others sent, but it knows how far optimizers go in so many
steps. What a round measures instead of training it (class means, a gradient start) is no step and is not compared,
nor is what a method chooses (FISH's places). The
last state is kept durably, since training processes end between rounds, and of each of the last runs, since rounds of
others come in between; a device that joins late compares with what the run began with, as it makes that itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.schedule import measured_blocks, round_of
from fedpeft.catalogue import BY_NAME
from fedpeft.errors import PolicyRefused
from fedpeft.ids import BlockId
from fedpeft.round.device.last_runs import LastRuns
from fedpeft.round.local import DeviceStore
from fedpeft.round.messages import BlockPayload
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.round.rates.search import MOST, follows_search
from fedpeft.wire import message

__all__ = ["StateWatch"]

Vector = npt.NDArray[np.float32]
NO_CONTROLS: Mapping[BlockId, Vector] = MappingProxyType({})


@message(0x018A, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedState:
    """Store record: the state that this device trained on last, in which run, and how many steps came before."""

    run_id: str
    first_step: int
    blocks: tuple[BlockPayload, ...]


_RUNS = LastRuns(
    at_hand="watched-state",
    aside="watched",
    index="watched-set-aside",
    nothing=WatchedState(run_id="", first_step=0, blocks=()),
)


class StateWatch:
    """Compares the states of each run.

    Args:
        most: root mean square by which a block may move, in learning rates times local steps; None: by any.
        store: where the last states lie; must outlive the process on a real device.
    """

    def __init__(self, most: float | None, store: DeviceStore) -> None:
        self._most, self._store = most, store

    def expect_near(
        self,
        plan: LearningPlan,
        state: AdapterState,
        first_step: int,
        *,
        start: Callable[[], AdapterState],
        controls: Mapping[BlockId, Vector] = NO_CONTROLS,
    ) -> None:
        """Returns if this state may follow the last one, and remembers it.

        Args:
            first_step: of the round that begins with it.
            start: makes what the plan begins with.
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
        before, last = self._last(plan, state, start)
        if last is not None and before < first_step:
            steps = plan.train.local_steps
            rounds = range(round_of(before, steps), round_of(first_step, steps))
            measured = frozenset[BlockId]().union(*(measured_blocks(state.spec, plan.adapter, one) for one in rounds))
            chosen = _expect_chosen(state)
            blocks = [block.block_id for block in state.spec.blocks if block.block_id not in measured | chosen]
            largest = MOST if any(follows_search(plan, state.spec, one) for one in rounds) else 0.0
            for block_id, rate in learning_rates(plan, state.spec, blocks, scale=largest).items():
                moved = np.subtract(state[block_id], last[block_id], dtype=np.float64)
                found = _root_mean_square(moved) / (rate * (first_step - before))
                if not found <= self._most:
                    raise PolicyRefused(
                        f"Expected {block_id} within policy.max_state_step={self._most:g} learning rates per step of "
                        f"the state before, found {found:.3g}: no training goes so far."
                    )
        seen = tuple(BlockPayload(block_id=name, values=state[name].astype("<f4").tobytes()) for name in state)
        _RUNS.keep(self._store, WatchedState(run_id=plan.run_id, first_step=first_step, blocks=seen))

    def _last(
        self, plan: LearningPlan, state: AdapterState, start: Callable[[], AdapterState]
    ) -> tuple[int, AdapterState | None]:
        """After how many steps this device saw the run last, and in which state; None: nothing to compare with."""
        found = _RUNS.of(self._store, plan.run_id)
        if found is not None:
            vectors = {part.block_id: np.frombuffer(part.values, "<f4").astype(np.float32) for part in found.blocks}
            return found.first_step, AdapterState(state.spec, vectors)
        return 0, None if plan.start else start()


def _expect_chosen(state: AdapterState) -> frozenset[BlockId]:
    """The blocks that methods fill in with whole numbers, which go no way in steps: FISH's places, AdaLoRA's mask.

    Raises:
        PolicyRefused: one holds what its method never chooses; a mask of 100 would amplify as a scale does.
    """
    methods = {block.method for block in state.spec.blocks}
    chosen = {name: most for one in methods & BY_NAME.keys() for name, most in BY_NAME[one].chooses if name in state}
    for name, most in chosen.items():
        values = state[name]
        if not np.all((values >= 0) & (values <= most) & (values == np.rint(values))):
            raise PolicyRefused(
                f"Expected whole numbers from 0 to {most} in {name}, found others: no method chooses them."
            )
    return frozenset(chosen)


def _root_mean_square(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
