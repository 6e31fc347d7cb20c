"""What fedpeft relies on in Flower 1.41, and that the network adds nothing to a sum and takes nothing from it.

An upgrade of flwr that breaks one of these must fail here, loudly.
"""

import os
import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import RoundSums, proposal
from fedpeft.clock import SystemClock
from fedpeft.config.aggregate import Aggregate
from fedpeft.config.model import Rounds, SecureAggregation
from fedpeft.entropy import seeded_entropy
from fedpeft.errors import PolicyRefused, SpecMismatch
from fedpeft.flower import (
    RECORD,
    STYPE,
    GridTransport,
    LocalGrid,
    NodeContext,
    client_app,
    from_record,
    run_local,
    to_record,
)
from fedpeft.flower.app import FAILED
from fedpeft.ids import BlockId, NodeId
from fedpeft.round.coordinator import OpenSum, SecureSum, run_round
from fedpeft.round.metrics import METRICS, TASK_METRICS, TRAIN_LOSS
from fedpeft.round.transport import Reply, Stage, Transport
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft_sim.plain_sum import PlainSession, PlainSum

SIZES = {"head": 300, "bitfit": 17}
SPEC = toy_spec(SIZES)
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC)


def answers(app: ClientApp, stage: Stage, requests: Mapping[NodeId, bytes], *, devices: int = 3) -> dict[NodeId, Reply]:
    """What comes back over a LocalGrid."""
    grid = LocalGrid(app, devices=devices, workers=2)
    try:
        return {
            reply.node: reply for reply in GridTransport(grid, SystemClock()).exchange(stage, requests, deadline_s=30)
        }
    finally:
        grid.close()


def echo(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
    return f"{node.node} {node.partition} {stage.value} ".encode() + payload


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_a_payload_survives_a_record(payload: bytes) -> None:
    assert from_record(to_record(payload)) == payload


@pytest.mark.parametrize("size", [0, 1, 4097, 3_000_001])
def test_a_payload_survives_the_grid_in_both_directions(size: int) -> None:
    payload = seeded_entropy(0, "payload")(size)
    (reply,) = answers(client_app(lambda node, stage, data: data), Stage.FIT, {NodeId(1001): payload}).values()
    assert reply.payload == payload
    assert (reply.bytes_down, reply.bytes_up, reply.error) == (size, size, "")
    assert reply.seconds > 0


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_reaches_the_device_that_it_is_meant_for(stage: Stage) -> None:
    replies = answers(client_app(echo), stage, {NodeId(1000): b"a", NodeId(1002): b"b"})
    assert replies[NodeId(1000)].payload == f"1000 0 {stage.value} a".encode()
    assert replies[NodeId(1002)].payload == f"1002 2 {stage.value} b".encode()
    assert len(replies) == 2


def test_the_nodes_of_a_grid_are_ascending() -> None:
    grid = LocalGrid(client_app(echo), devices=4, workers=1)
    assert GridTransport(grid, SystemClock()).nodes() == [1000, 1001, 1002, 1003]
    grid.close()


def raising(error: Exception) -> ClientApp:
    def handle(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        raise error

    return client_app(handle)


def test_the_text_of_an_unforeseen_error_does_not_leave_the_device(caplog: pytest.LogCaptureFixture) -> None:
    (reply,) = answers(raising(ValueError("patient 7: HIV")), Stage.FIT, {NodeId(1000): b""}).values()
    assert reply.payload is None
    assert reply.error == FAILED
    assert "patient 7" in caplog.text, "the device's own log has it"


def test_every_error_of_a_device_is_the_same_reply() -> None:
    errors = [PolicyRefused("Expected mode=full, found fast."), MemoryError(), ValueError("patient 7: HIV")]
    replies = [answers(raising(error), Stage.FIT, {NodeId(1000): b""})[NodeId(1000)] for error in errors]
    assert {(reply.payload, reply.error) for reply in replies} == {(None, FAILED)}


def test_a_device_that_fails_does_not_hold_up_the_others() -> None:
    def handle(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        if node.partition == 1:
            raise MemoryError
        return payload

    replies = answers(client_app(handle), Stage.MASK, dict.fromkeys(map(NodeId, (1000, 1001, 1002)), b"x"))
    assert [replies[NodeId(node)].payload for node in (1000, 1001, 1002)] == [b"x", None, b"x"]


def array(payload: bytes, **changes: object) -> ArrayRecord:
    fields = {"dtype": "uint8", "shape": (len(payload),), "stype": STYPE, "data": payload} | changes
    return ArrayRecord({RECORD: Array(**fields)})  # type: ignore[arg-type]


FOREIGN: list[RecordDict] = [
    RecordDict(),
    RecordDict({RECORD: ConfigRecord({"x": 1})}),
    RecordDict({"other": array(b"abc")}),
    RecordDict({RECORD: array(b"abc"), "more": ConfigRecord({"x": 1})}),
    RecordDict({RECORD: ArrayRecord()}),
    RecordDict({RECORD: ArrayRecord({RECORD: array(b"a")[RECORD], "second": array(b"b")[RECORD]})}),
    RecordDict({RECORD: array(b"abc", stype="numpy.ndarray")}),
    RecordDict({RECORD: array(b"abcd", dtype="float32")}),
    RecordDict({RECORD: array(b"abc", shape=(2,))}),
    RecordDict({RECORD: array(b"abc", shape=(3, 1))}),
]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_content_is_refused(content: RecordDict) -> None:
    with pytest.raises(SpecMismatch):
        from_record(content)


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_device_that_answers_with_foreign_content_has_failed(content: RecordDict) -> None:
    app = ClientApp()

    @app.train("fit")
    def respond(message: Message, context: Context) -> Message:
        return Message(content, reply_to=message)

    (reply,) = answers(app, Stage.FIT, {NodeId(1000): b""}).values()
    assert reply.payload is None
    assert "Expected" in reply.error


def test_a_coordinator_that_sends_foreign_content_is_told_so() -> None:
    heard: list[bytes] = []
    grid = LocalGrid(client_app(lambda node, stage, data: heard.append(data) or b""), devices=1, workers=1)
    sent = Message(RecordDict({RECORD: ConfigRecord({"cmd": "ls"})}), dst_node_id=1000, message_type="train.fit")
    (reply,) = grid.send_and_receive([sent], timeout=30)
    grid.close()
    assert reply.has_error()
    assert heard == []


def test_a_message_type_that_is_no_stage_never_reaches_the_device() -> None:
    heard: list[bytes] = []
    grid = LocalGrid(client_app(lambda node, stage, data: heard.append(data) or b""), devices=1, workers=1)
    sent = Message(to_record(b"x"), dst_node_id=1000, message_type="train.other")
    with pytest.raises(ValueError, match="other"):
        list(grid.send_and_receive([sent], timeout=30))
    grid.close()
    assert heard == []


def test_nothing_passes_the_grid_by_reference() -> None:
    """What a network would copy, refuse or lose, the grid copies, refuses or loses."""
    kept: list[RecordDict] = []
    app = ClientApp()

    @app.train("fit")
    def respond(message: Message, context: Context) -> Message:
        kept.extend([message.content, to_record(b"reply")])
        return Message(kept[-1], reply_to=message)

    grid = LocalGrid(app, devices=1, workers=1)
    request = Message(to_record(b"request"), dst_node_id=1000, message_type="train.fit")
    (reply,) = grid.send_and_receive([request], timeout=30)
    grid.close()
    assert [from_record(content) for content in kept] == [b"request", b"reply"]
    for sent, arrived in ((request.content, kept[0]), (kept[1], reply.content)):
        assert from_record(arrived) == from_record(sent)
        assert arrived is not sent
        assert arrived[RECORD] is not sent[RECORD]


class Gate:
    """A handler that answers node 1000 only when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        if node.partition == 0 and stage is Stage.FIT:
            assert self.go.wait(30)
        return stage.value.encode() + payload


def test_an_exchange_ends_at_its_deadline_without_the_silent() -> None:
    gate = Gate()
    grid = LocalGrid(client_app(gate), devices=3, workers=3)
    transport = GridTransport(grid, FakeClock(step_s=0.25), poll_s=0.01)
    requests = dict.fromkeys(map(NodeId, (1000, 1001, 1002)), b"x")
    heard = {reply.node for reply in transport.exchange(Stage.FIT, requests, deadline_s=20.0)}
    assert heard == {1001, 1002}
    gate.go.set()
    for thread in threading.enumerate():  # the late reply is ready, and the device free, before the next exchange
        if thread.name == "device-1000":
            thread.join(30)
    later = list(transport.exchange(Stage.SHARE, requests, deadline_s=1000.0))
    assert sorted(reply.node for reply in later) == [1000, 1001, 1002]
    assert {reply.payload for reply in later} == {b"train.sharex"}, "what came too late is discarded"
    grid.close()


def test_a_coordinator_runs_as_a_server_app_and_its_errors_come_out() -> None:
    seen: list[list[NodeId]] = []
    run_local(client_app(echo), lambda transport: seen.append(list(transport.nodes())), devices=3, workers=1)
    assert seen == [[1000, 1001, 1002]]

    def fails(transport: GridTransport) -> None:
        raise PolicyRefused("Expected this to come out.")

    with pytest.raises(PolicyRefused, match="come out"):
        run_local(client_app(echo), fails, devices=3, workers=1)


def test_flower_does_not_phone_home() -> None:
    names = ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION")
    assert [os.environ[name] for name in names] == ["0", "1", "1"]


# The differential tests: in memory = LocalGrid = plain numpy sum.

Deltas = Mapping[str, Mapping[str, np.ndarray]]


def deltas_of(devices: int, *, exact: bool) -> Deltas:
    """Device 0 trains one block only. Exact ones are multiples of 2^-20: the ring holds them without rounding."""
    rng = np.random.default_rng(7)
    owned = {f"d{i}": list(SIZES)[: 1 if i == 0 else 2] for i in range(devices)}

    def draw(size: int) -> np.ndarray:
        return rng.integers(-(2**20), 2**20, size) / 2**20 if exact else rng.standard_normal(size)

    return {name: {block: draw(SIZES[block]).astype(np.float32) for block in blocks} for name, blocks in owned.items()}


def fleet_of(deltas: Deltas, *, plain: bool = False) -> ToyFleet:
    trainers = {name: GivenTrainer(SPEC, own) for name, own in deltas.items()}
    return enrol(trainers, session=PlainSession if plain else None)


def summed_over(
    transport: Transport, fleet: ToyFleet, terms: SecureAggregation, open_sum: OpenSum = SecureSum
) -> secagg.Summed:
    outcome = run_round(
        toy_task(toy_plan(SPEC, secagg=terms), state=STATE),
        STATE,
        fleet.members(),
        transport,
        rounds=Rounds(),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
        open_sum=open_sum,
    )
    assert isinstance(outcome.result, secagg.Summed), outcome.result
    return outcome.result


def over_grid(fleet: ToyFleet, terms: SecureAggregation, open_sum: OpenSum = SecureSum) -> secagg.Summed:
    handles = fleet.handles
    results: list[secagg.Summed] = []
    run_local(
        client_app(lambda node, stage, payload: handles[node.node](stage, payload)),
        lambda transport: results.append(summed_over(transport, fleet, terms, open_sum)),
        devices=len(fleet.names),
        workers=1,  # seeded entropy, a test's, is not for threads
    )
    return results[0]


def in_memory(fleet: ToyFleet, terms: SecureAggregation, open_sum: OpenSum = SecureSum) -> secagg.Summed:
    return summed_over(InMemoryTransport(fleet.handles, FakeClock()), fleet, terms, open_sum)


def values(result: secagg.Summed) -> dict[BlockId, bytes]:
    return {block_id: part.values.tobytes() for block_id, part in result.sums.items()}


@pytest.mark.parametrize("mode", ["full", "fast"])
@pytest.mark.parametrize("run", [in_memory, over_grid])
def test_a_secure_sum_over_any_transport_is_numpys_sum_exactly(
    mode: str, run: Callable[[ToyFleet, SecureAggregation], secagg.Summed]
) -> None:
    deltas = deltas_of(5, exact=True)
    result = run(fleet_of(deltas), exact_terms(5, mode=mode))
    for block in SIZES:
        expected = sum(own[block].astype(np.float64) for own in deltas.values() if block in own)
        np.testing.assert_array_equal(result.sums[BlockId(block)].values, expected)
    assert result.sums[TRAIN_LOSS].owners == 5


@pytest.mark.parametrize("mode", ["full", "fast"])
def test_values_that_need_rounding_are_rounded_alike_on_every_path(mode: str) -> None:
    deltas, terms = deltas_of(5, exact=False), SecureAggregation.model_validate({"mode": mode, "bits": 16})
    secure = in_memory(fleet_of(deltas), terms)
    assert values(over_grid(fleet_of(deltas), terms)) == values(secure)
    plain = in_memory(fleet_of(deltas, plain=True), terms, PlainSum)
    assert values(plain) == values(secure)
    exact = sum(own["head"].astype(np.float64) for own in deltas.values())
    assert not np.array_equal(secure.sums[BlockId("head")].values, exact), "these values are not on the grid"


def test_the_plain_sum_gives_the_very_same_state_as_the_secure_one() -> None:
    deltas, terms = deltas_of(5, exact=False), SecureAggregation()

    def state_after(result: secagg.Summed) -> AdapterState:
        weight = float(len(result.survivors))
        sums = {key: part.values for key, part in result.sums.items() if key not in (METRICS, TRAIN_LOSS, TASK_METRICS)}
        return proposal(Aggregate(), STATE, RoundSums(sums=sums, total_weight=weight, owner_weights={}))

    secure = state_after(over_grid(fleet_of(deltas), terms))
    plain = state_after(over_grid(fleet_of(deltas, plain=True), terms, PlainSum))
    assert plain.to_safetensors() == secure.to_safetensors()
    assert plain.digests != STATE.digests
