"""A state as it came to a device: of the right lengths, finite, in range, and moved only where its rounds can move it.

Pure. Where the next state follows from published sums to the bit, ``run_memory`` makes it and compares; here is what
can be asked of every other state.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.round.history import BURNT
from fedpeft.round.messages import Link
from fedpeft.round.plan import LearningPlan

__all__ = ["expect_only_head_moved", "expect_range", "measured_only", "state_of"]

Vector = npt.NDArray[np.float32]

LARGEST_PLACE = 2.0**24
"""Up to here float32 holds every whole number: what FISH names a weight by, in a block that the coordinator writes."""


def state_of(spec: AdapterSpec, plan: LearningPlan, blocks: Mapping[BlockId, bytes]) -> AdapterState:
    """The state that these float32 values are.

    Raises:
        SpecMismatch: a block of another length, or not in range.
    """
    vectors: dict[BlockId, Vector] = {}
    for block in spec.blocks:
        values = blocks[block.block_id]
        if len(values) != 4 * block.size:
            raise SpecMismatch(f"{block.block_id}: expected {4 * block.size} bytes, found {len(values)}.")
        vectors[block.block_id] = np.frombuffer(values, "<f4").astype(np.float32)
        _check_range(block, vectors[block.block_id], plan.max_state)
    return AdapterState(spec, vectors)


def expect_range(plan: LearningPlan, state: AdapterState) -> None:
    """Returns if every value is finite and within the plan's limit.

    Raises:
        SpecMismatch: names the block.
    """
    for block in state.spec.blocks:
        _check_range(block, state[block.block_id], plan.max_state)


def _check_range(block: BlockSpec, values: Vector, limit: float) -> None:
    """Whole numbers of a block that nobody trains may be as large as a place."""
    sizes = np.abs(values)
    if not block.trainable:
        sizes = sizes[(sizes > LARGEST_PLACE) | (values != np.rint(values))]  # NaN is no whole number
    if not (largest := float(sizes.max(initial=0.0))) <= limit:
        raise SpecMismatch(f"{block.block_id}: expected finite values of at most {limit:g}, found {largest:g}.")


def measured_only(plan: LearningPlan, spec: AdapterSpec, links: Iterable[Link]) -> bool:
    """Whether these rounds have moved the class head and nothing else: one or more measured it, others were burnt."""
    summed = [link.round_id for link in links if link.outcome != BURNT]
    return bool(summed) and all(measures_head(spec, plan.adapter, round_id) for round_id in summed)


def expect_only_head_moved(before: Mapping[BlockId, str], state: AdapterState) -> None:
    """Returns if a state after ``measured_only`` rounds is the one before them, but for the head.

    The head that class means make does not repeat to the bit on another machine, so it is taken as it was signed. All
    else must be as it was: else every refresh of the head would be a chance to bring in a crafted adapter.

    Args:
        before: digests of the state before.

    Raises:
        SpecMismatch: names the blocks.
    """
    moved = [name for name, sha256 in state.digests.items() if name != HEAD_BLOCK and before.get(name) != sha256]
    if moved:
        raise SpecMismatch(
            f"Expected a round that measured the class head to leave everything else, found other values of "
            f"{', '.join(moved)}: its coordinator changed them."
        )
