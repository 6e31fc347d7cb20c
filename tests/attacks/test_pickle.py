"""Nobody unpickles what came over the network: a pickled payload in place of any message of a round is refused unread.

Python tells an audit hook of every global that an unpickler looks up; it may tell of none while messages are handled.
"""

import contextlib
import pickle  # noqa: TID251 - it is what the attacker sends
import sys
from collections.abc import Iterator

import pytest

from fedpeft import secagg
from fedpeft.config.model import Rounds
from fedpeft.errors import FedpeftError
from fedpeft.ids import BlockId
from fedpeft.round.coordinator import run_round
from fedpeft.round.transport import Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_past, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state

N = 6
SPEC = toy_spec({"head": N})
HEAD = BlockId("head")
TRAINING = [Stage.FIT, Stage.SHARE, Stage.MASK, Stage.CONSIST, Stage.REVEAL]

_listening, _looked_up = [False], list[str]()


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _listening[0] and event == "pickle.find_class":
        _looked_up.append(str(arguments))


sys.addaudithook(_hook)


class Touches:
    """Unpickling this calls ``print``."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("unpickled",))


PICKLED = pickle.dumps(Touches())


@pytest.fixture
def looked_up() -> Iterator[list[str]]:
    _looked_up.clear()
    _listening[0] = True
    yield _looked_up
    _listening[0] = False


def test_the_hook_hears_of_an_unpickler(looked_up: list[str]) -> None:
    pickle.loads(PICKLED)  # noqa: S301 - our own
    assert looked_up


def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)})


@pytest.mark.parametrize("stage", list(Stage))
def test_a_device_does_not_unpickle_a_request(stage: Stage, looked_up: list[str]) -> None:
    made = fleet()
    with contextlib.suppress(FedpeftError):
        made.devices[made.nodes[0]].handle(stage, PICKLED)
    assert looked_up == []


@pytest.mark.parametrize("stage", TRAINING)
def test_the_coordinator_does_not_unpickle_an_answer_and_goes_on_without_its_sender(
    stage: Stage, looked_up: list[str]
) -> None:
    made = fleet()
    handles = dict(made.handles)
    liar = made.nodes[-1]
    honest = handles[liar]
    handles[liar] = lambda now, payload: PICKLED if now is stage else honest(now, payload)
    plan = toy_plan(SPEC, secagg=exact_terms(N))
    outcome = run_round(
        toy_task(plan, past=toy_past(plan, toy_state(SPEC), rounds=0, coordinator=made.coordinator.public)),
        toy_state(SPEC),
        made.members(),
        InMemoryTransport(handles, FakeClock()),
        rounds=Rounds(fit_deadline_s=100.0, stage_deadline_s=10.0),
        identity=made.coordinator,
        entropy=made.entropy,
        observe=lambda event: None,
    )
    assert looked_up == []
    assert isinstance(outcome.result, secagg.Summed), outcome.result
    total = list(outcome.result.sums[HEAD].values)
    assert total[:-1] == [1.0] * (N - 1)
    assert total[-1] == (1.0 if stage in (Stage.CONSIST, Stage.REVEAL) else 0.0), "its masked input was sent before"
