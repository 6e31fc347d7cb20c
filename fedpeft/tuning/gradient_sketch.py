"""The gradient of LoRA's A at A = 0 and B = Omega: a device's part of a gradient start (``aggregate.gradient_start``).

The model computes what the base computes, and A's gradient is the dense matrix's, seen through Omega. Guarantees: what
is returned has the same length on every device whatever its data, so that none outweighs the others, and most of its
coordinates lie far within the secure sum's range: what is above it is cut there.
"""

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState, flatten
from fedpeft.aggregate.gradient_start import probing_state
from fedpeft.data.encode import EncodedDataset
from fedpeft.errors import RunFailed
from fedpeft.ids import BlockId
from fedpeft.methods.union import UnionAdapter
from fedpeft.tuning.batches import training_stream
from fedpeft.tuning.cache import HiddenSource
from fedpeft.tuning.objective import Objective
from fedpeft.tuning.train import LocalPlan

__all__ = ["sketch_gradient"]

Vector = npt.NDArray[np.float32]
HEADROOM = 64.0
"""The secure sum's range over the root mean square of what is sent: a gradient's largest coordinates are tens of it."""


def sketch_gradient(
    union: UnionAdapter,
    state: AdapterState,
    examples: EncodedDataset,
    plan: LocalPlan,
    *,
    run_seed: int,
    seed: int,
    max_abs: float,
    cache: HiddenSource | None = None,
) -> tuple[dict[BlockId, Vector], float, int]:
    """A's gradient over the batches of a round, scaled to one length.

    Args:
        union: the model; afterwards it holds the probing state.
        state: of round 1.
        examples: this device's.
        plan: A's tiers that the device sums (keys of ``learning_rates``), and which batches: those of its first steps.
        run_seed: of Omega; the same on every device.
        seed: of the stream of batches, as ``train`` takes it.
        max_abs: of the secure sum.
        cache: of these examples.

    Returns:
        Block -> (P,) float32 with a root mean square of max_abs / 64 over all blocks, zeros where there is no gradient;
        the loss of the base summed over the examples; their number.

    Raises:
        RunFailed: the gradient is not finite.
    """
    union.load(probing_state(state, seed=run_seed))
    union.train_only(plan.learning_rates.keys())
    objective = Objective(
        union, examples, cache=cache, logit_offset=None, micro_batch=plan.micro_batch, checkpointing=plan.checkpointing
    )
    stream = training_stream(examples, batch_size=plan.batch_size, seed=seed)
    loss_sum, seen = 0.0, 0
    for step in range(plan.steps):
        indices = stream.batch(step)
        loss_sum += objective.backward(indices) * len(indices)
        seen += len(indices)
    found = {
        block_id: flatten(
            union.spec[block_id],
            {
                name: np.zeros(one.shape, np.float32) if one.grad is None else one.grad.cpu().float().numpy()
                for name, one in union.parameters(block_id).items()
            },
        )
        for block_id in plan.learning_rates
    }
    union.train_only(())
    size = sum(vector.size for vector in found.values())
    rms = float(np.sqrt(sum(np.square(vector, dtype=np.float64).sum() for vector in found.values()) / max(1, size)))
    if not np.isfinite(rms):
        raise RunFailed(
            "Expected a finite gradient of the base, found NaN or infinity; check the base and the examples."
        )
    scale = max_abs / HEADROOM / rms if rms else 0.0
    return {block_id: (vector * scale).astype(np.float32) for block_id, vector in found.items()}, loss_sum, seen
