"""Server optimizers by hand, and moments that survive a checkpoint bit for bit."""

import numpy as np
import pytest

from fedpeft.aggregate import ServerState, optimized
from fedpeft.config.aggregate import Aggregate
from fedpeft.ids import BlockId
from fedpeft.testing.trainers import toy_spec, toy_state

SPEC = toy_spec({"head": 4})
STATE = toy_state(SPEC)
HEAD = BlockId("head")
DELTA = np.array([0.5, -0.25, 0.0, 1.0], np.float32)


def twice(kind: str, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """How far two rounds with the same proposal move the state."""
    rule = Aggregate.model_validate({"server_optimizer": kind, **options})
    one, server = optimized(rule, STATE, STATE.replace({HEAD: STATE[HEAD] + DELTA}), ServerState())
    server = ServerState.from_safetensors(server.to_safetensors())
    two, _ = optimized(rule, one, one.replace({HEAD: one[HEAD] + DELTA}), server)
    return one[HEAD] - STATE[HEAD], two[HEAD] - one[HEAD]


def test_without_an_optimizer_the_step_is_the_mean() -> None:
    first, second = twice("none")
    np.testing.assert_allclose(first, DELTA)
    np.testing.assert_allclose(second, DELTA)


def test_momentum_adds_up() -> None:
    first, second = twice("momentum", server_beta1=0.5)
    np.testing.assert_allclose(first, DELTA, atol=1e-6)
    np.testing.assert_allclose(second, 1.5 * DELTA, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "first_v", "second_v"),
    [
        ("adagrad", DELTA**2, 2 * DELTA**2),
        ("adam", 0.1 * DELTA**2, 0.19 * DELTA**2),
        ("yogi", 0.1 * DELTA**2, 0.2 * DELTA**2),
    ],
)
def test_adaptive_optimizers_by_their_formulas(kind: str, first_v: np.ndarray, second_v: np.ndarray) -> None:
    moved = twice(kind, server_beta1=0.5, server_beta2=0.9, server_tau=0.1, server_learning_rate=0.2)
    for step, m, v in zip(moved, (0.5 * DELTA, 0.75 * DELTA), (first_v, second_v), strict=True):
        np.testing.assert_allclose(step, 0.2 * m / (np.sqrt(v) + 0.1), rtol=1e-5, atol=1e-7)


def test_moments_survive_a_checkpoint_bit_for_bit() -> None:
    server = ServerState(first={HEAD: DELTA}, control={HEAD: 2 * DELTA})
    again = ServerState.from_safetensors(server.to_safetensors())
    assert (again.first[HEAD].tobytes(), again.control[HEAD].tobytes()) == (DELTA.tobytes(), (2 * DELTA).tobytes())
    assert ServerState().to_safetensors() == b""
    assert ServerState.from_safetensors(b"") == ServerState()
