"""Server optimizers (Reddi 2021, "Adaptive Federated Optimization"): the mean delta as a pseudo-gradient.

With delta = proposal - state:

    none      x + lr delta
    momentum  v <- beta1 v + delta;                                      x + lr v          (FedAvgM, Hsu 2019)
    adagrad   v <- v + delta^2
    adam      v <- beta2 v + (1 - beta2) delta^2
    yogi      v <- v - (1 - beta2) delta^2 sign(v - delta^2)
              m <- beta1 m + (1 - beta1) delta;                          x + lr m / (sqrt(v) + tau)

The default is none: untuned adaptive ones hurt (FedDQC: .750 -> .512). Moments are float32 and committed with the
state, so a resumed run goes on bit for bit. A block that a round did not sum keeps its moments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from fedpeft.adapter import AdapterState
from fedpeft.config.aggregate import Aggregate
from fedpeft.errors import IntegrityFailed, RunFailed
from fedpeft.ids import BlockId

__all__ = ["ServerState", "optimized"]

Vector = npt.NDArray[np.float32]
_KINDS = ("first", "second", "control")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the coordinator remembers from one round to the next beside the global state.

    Args:
        first, second: moments of the server optimizer, by block.
        control: SCAFFOLD's control, by block, in units of one local step.
    """

    first: Mapping[BlockId, Vector] = field(default_factory=dict)
    second: Mapping[BlockId, Vector] = field(default_factory=dict)
    control: Mapping[BlockId, Vector] = field(default_factory=dict)

    def to_safetensors(self) -> bytes:
        """One safetensors file; empty bytes when there is nothing to remember."""
        named = {f"{kind}/{block_id}": v for kind in _KINDS for block_id, v in sorted(getattr(self, kind).items())}
        return bytes(save_safetensors(named)) if named else b""

    @classmethod
    def from_safetensors(cls, payload: bytes) -> "ServerState":
        """The inverse of ``to_safetensors``.

        Raises:
            IntegrityFailed: a name that this version does not know.
        """
        parts: dict[str, dict[BlockId, Vector]] = {kind: {} for kind in _KINDS}
        for name, vector in load_safetensors(payload).items() if payload else ():
            kind, _, block_id = name.partition("/")
            if kind not in parts:
                raise IntegrityFailed(f"Expected moments of this version of fedpeft, found {name!r}.")
            parts[kind][BlockId(block_id)] = vector
        return cls(**parts)


def optimized(
    aggregate: Aggregate, state: AdapterState, proposed: AdapterState, server: ServerState
) -> tuple[AdapterState, ServerState]:
    """The state after the server optimizer's step towards ``proposed``, and the moments after it.

    Raises:
        RunFailed: a value is not finite; nothing was changed.
    """
    kind, rate = aggregate.server_optimizer, aggregate.server_learning_rate
    changed = [block_id for block_id in state if state[block_id] is not proposed[block_id]]
    if kind == "none" and rate == 1.0:
        return proposed, server
    first, second, moved = dict(server.first), dict(server.second), {}
    for block_id in changed:
        old = state[block_id].astype(np.float64)
        delta = proposed[block_id].astype(np.float64) - old
        step = delta
        if kind == "momentum":
            step = aggregate.server_beta1 * _held(first, block_id, old) + delta
            first[block_id] = step.astype(np.float32)
        elif kind != "none":
            m = aggregate.server_beta1 * _held(first, block_id, old) + (1 - aggregate.server_beta1) * delta
            v = _second(aggregate, _held(second, block_id, old), np.square(delta))
            first[block_id], second[block_id] = m.astype(np.float32), v.astype(np.float32)
            step = m / (np.sqrt(v) + aggregate.server_tau)
        moved[block_id] = (old + rate * step).astype(np.float32)
        if not np.isfinite(moved[block_id]).all():
            raise RunFailed(f"Expected finite values in {block_id} after the step; the state was not changed.")
    return state.replace(moved), ServerState(first=first, second=second, control=server.control)


def _second(
    aggregate: Aggregate, v: npt.NDArray[np.float64], square: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    if aggregate.server_optimizer == "adagrad":
        return v + square
    if aggregate.server_optimizer == "yogi":
        return v - (1 - aggregate.server_beta2) * square * np.sign(v - square)
    return aggregate.server_beta2 * v + (1 - aggregate.server_beta2) * square


def _held(
    moments: Mapping[BlockId, Vector], block_id: BlockId, like: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    held = moments.get(block_id)
    return np.zeros_like(like) if held is None else held.astype(np.float64)
