"""A coordinator that gives everybody but one device another request: model inconsistency (Pasquini et al. 2022)."""

from collections.abc import Callable

from fedpeft.adapter import AdapterState
from fedpeft.config.model import Rounds
from fedpeft.ids import NodeId
from fedpeft.round.coordinator import run_round
from fedpeft.round.messages import FitRequest
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import RoundOutcome
from fedpeft.round.transport import Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.wire import decode, encode

__all__ = ["Lie", "lied_to"]

Lie = Callable[[FitRequest], FitRequest]


def lied_to(fleet: ToyFleet, plan: LearningPlan, state: AdapterState, lie: Lie, *, victim: NodeId) -> RoundOutcome:
    """One round in which all devices but the victim get a changed request; the coordinator's code is the product's."""

    def handle(node: NodeId) -> Callable[[Stage, bytes], bytes]:
        def answer(stage: Stage, payload: bytes) -> bytes:
            if stage is Stage.FIT and node != victim:
                payload = encode(lie(decode(payload, FitRequest)))
            return fleet.handles[node](stage, payload)

        return answer

    return run_round(
        toy_task(plan, state=state),
        state,
        fleet.members(),
        InMemoryTransport({node: handle(node) for node in fleet.names}, FakeClock()),
        rounds=Rounds(),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
    )
