"""Devices make the next state themselves, from published sums: the same bits, under every rule that promises it."""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from world import INITIAL, NODES, SPEC, World, raising_at

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec
from fedpeft.aggregate import ServerState
from fedpeft.config.model import Adapter
from fedpeft.config.rules import RULES, rules_that
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId, RoundId
from fedpeft.ring import BlockEncoding, RingParams, SumRange
from fedpeft.round.device.held import HELD
from fedpeft.round.device.records import HeldBlocks
from fedpeft.round.linking import sums_digest
from fedpeft.round.messages import BlockPayload, FitRequest, Link
from fedpeft.round.plan import LearningPlan
from fedpeft.round.ring_range import ring_range
from fedpeft.round.task import RoundTask
from fedpeft.round.transition import is_exact, next_state
from fedpeft.round.transport import Stage
from fedpeft.testing.network import CoordinatorKilled, Fault
from fedpeft.wire import decode
from fedpeft_server.run.run_view import read_run


def listening(world: World) -> list[tuple[int, FitRequest]]:
    """Fills up with every fit request, by node."""
    heard: list[tuple[int, FitRequest]] = []
    for node, handle in list(world.network.devices.items()):

        def answer(stage: Stage, payload: bytes, node=node, handle=handle) -> bytes:  # type: ignore[no-untyped-def]
            if stage is Stage.FIT:
                heard.append((node, decode(payload, FitRequest)))
            return handle(stage, payload)

        world.network.devices[node] = answer
    return heard


def changed(world: World, **aggregate: object) -> World:
    world.config = world.config.model_copy(update={"aggregate": world.config.aggregate.model_copy(update=aggregate)})
    world.plan = world.plan.model_copy(update={"aggregate": world.config.aggregate})
    return world


def held(world: World, name: str) -> HeldBlocks:
    return decode(world.fleet.stores[name].values[HELD], HeldBlocks)


EXACT_RULES = ["nested", "fedit", "rbla", "rolora"]
OPTIMIZERS = ["none", "momentum", "adam", "yogi", "adagrad"]


# An optimizer steps by whatever a rule gives: every optimizer under one rule, and every rule with one of them.
@pytest.mark.drawn(1, each=("rule",), always=lambda rule, **_: rule == "nested")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_every_class_e_rule_recomputes_bit_for_bit(tmp_path: Path, rule: str, optimizer: str) -> None:
    """Devices that took part are sent sums and no state, and all of them go on with the run to its end."""
    world = changed(World(tmp_path, count=3), rule=rule, server_optimizer=optimizer, server_learning_rate=0.5)
    heard = listening(world)
    world.train()
    assert world.path is not None
    assert [row.devices_survived for row in read_run(world.path).rounds] == [5] * 4
    assert len(heard) == 5 * 4, "nobody had to be asked twice"
    for _, request in heard[5:]:
        assert request.sums
        assert request.payloads == ()
    states = {held(world, name).digests for name in world.fleet.trainers}
    assert len(states) == 1


def test_scaffolds_controls_are_computed_again(tmp_path: Path) -> None:
    world = World(tmp_path, count=4)
    train = world.plan.train.model_copy(update={"scaffold": True, "optimizer": "sgd", "learning_rate": 0.1})
    world.config = world.config.model_copy(update={"train": train})
    adapter = Adapter.model_validate({"lora": {"rank": 4}, "bitfit": {}})
    world.plan = world.plan.model_copy(update={"train": train, "adapter": adapter})
    heard = listening(world)
    world.train()
    assert all(request.controls for _, request in heard[5:20])
    for name in world.fleet.trainers:
        memory = held(world, name).server
        assert memory is not None
        assert ServerState.from_safetensors(memory).control


@pytest.mark.parametrize("lies", [False, True])
def test_other_controls_than_those_that_follow_are_refused_by_whoever_followed(tmp_path: Path, lies: bool) -> None:
    """Work and signature fit the lie: a coordinator could steer one device's steps by them."""
    world = World(tmp_path, count=3)
    train = world.plan.train.model_copy(update={"scaffold": True, "optimizer": "sgd", "learning_rate": 0.1})
    world.config = world.config.model_copy(update={"train": train})
    adapter = Adapter.model_validate({"lora": {"rank": 4}, "bitfit": {}})
    world.plan = world.plan.model_copy(update={"train": train, "adapter": adapter})
    told: list[str] = []
    for device in world.fleet.devices.values():
        device._tell = lambda trouble: told.append(trouble.cause)
    real = RoundTask.control_payloads
    shifted = lambda task: tuple(  # noqa: E731
        replace(part, values=(np.frombuffer(part.values, "<f4") + 1).tobytes()) for part in real(task)
    )
    with pytest.MonkeyPatch.context() as patch:
        if lies:
            patch.setattr(RoundTask, "control_payloads", shifted)
        with suppress(Exception):  # nobody takes part from round 2 on
            world.train()
    assert any("Expected the controls that follow" in cause for cause in told) is lies


def test_rules_that_cannot_be_followed_send_the_state(tmp_path: Path) -> None:
    world = changed(World(tmp_path), rule="fedsvd")
    assert not is_exact(world.plan, SPEC, 1)
    heard = listening(world)
    with suppress(Exception):  # the toy has no LoRA to refactor: what was sent by then is enough
        world.train()
    assert all(request.sums == () for _, request in heard)


def test_whoever_missed_a_round_gets_the_state_and_follows_again_from_there(tmp_path: Path) -> None:
    world = World(tmp_path, faults=[Fault(kind="lose-request", stage=Stage.FIT, node=NODES[0], after=1)], count=4)
    heard = listening(world)
    world.train()
    first = [bool(request.sums) for node, request in heard if node == NODES[0]]
    assert first == [False, False, True, True]
    assert all(request.payloads == () for node, request in heard[5:] if node == NODES[1])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_resumed_coordinator_has_the_sums_that_its_devices_want(tmp_path: Path, when: str) -> None:
    world = World(tmp_path, count=4)
    with pytest.raises(CoordinatorKilled):
        world.train(raising_at(when, "commit 2"))
    world.restart()
    heard = listening(world)
    world.train()
    assert world.path is not None
    assert [row.devices_survived for row in read_run(world.path).rounds] == [5] * 5
    assert heard
    assert all(request.sums for _, request in heard)


def test_a_burnt_round_between_changes_nothing(tmp_path: Path) -> None:
    lost = [Fault(kind="lose-request", stage=Stage.REVEAL, node=node, times=2, after=1) for node in NODES[1:]]
    world = World(tmp_path, faults=lost, count=5, max_failures=3)
    world.train()
    assert world.path is not None
    rows = read_run(world.path).rounds
    assert [bool(row.burnt) for row in rows].count(True) == 1
    assert rows[-1].devices_survived == 5


def test_who_missed_nothing_but_burnt_rounds_follows_the_sums_from_there(tmp_path: Path) -> None:
    """The state of before them is the state that the next sum begins with: nobody is sent one, nor asked twice."""
    lost = [Fault(kind="lose-request", stage=Stage.REVEAL, node=node, times=2, after=1) for node in NODES[1:]]
    world = World(tmp_path, faults=lost, count=5, max_failures=3)
    heard = listening(world)
    world.train()
    assert world.path is not None
    burnt = [row.round for row in read_run(world.path).rounds if row.burnt]
    assert burnt
    after = heard[5 * (burnt[0] + 1) :]
    assert after
    assert all(request.payloads == () for _, request in after)


def test_devices_are_sent_no_more_bytes_than_the_state_and_half_in_a_16_bit_ring(tmp_path: Path) -> None:
    sizes = {}
    for bits in (16, 32):
        world = World(tmp_path / str(bits))
        terms = world.plan.secagg.model_copy(update={"bits": bits})
        world.config = world.config.model_copy(update={"secagg": terms})
        world.plan = world.plan.model_copy(update={"secagg": terms})
        heard = listening(world)
        world.train()
        sizes[bits] = {sum(len(part.values) for part in request.sums) for _, request in heard[5:]}
    assert sizes == {16: {2 * 8}, 32: {4 * 8}}, "eight coordinates are trained"


# The function alone, under buckets and noise, which the toys of a world do not have.

WIDE = AdapterSpec(
    blocks=tuple(
        BlockSpec(block_id=BlockId(name), method="lora", tensors=(TensorSpec(name=name, shape=(37,)),))
        for name in ("lora.B.t4", "lora.B.t8")
    )
)


def link_for(plan: LearningPlan, words: dict[BlockId, bytes], **numbers: object) -> Link:
    link = Link(
        round_id=1, attempt=1, state=bytes(32), outcome=b"\1" * 32, sums=sums_digest(words), devices=12, population=12,
        survivors=np.array([12], ">u4").tobytes(), weight=12, owners=np.full(len(words), 12, ">u4").tobytes(),
        weights=b"", clip=0.0,
    )  # fmt: skip
    return replace(link, **numbers)  # type: ignore[arg-type]


def toy(world: World, **changes: object) -> LearningPlan:
    return world.plan.model_copy(update=changes)


def coded(plan: LearningPlan, values: np.ndarray, devices: int, owners: int) -> bytes:
    used = ring_range(plan, WIDE, BlockId("lora.B.t4"), round_id=1, devices=devices)
    params = RingParams(bits=used.bits, addends=devices)
    encoding = BlockEncoding(params=params, ranges=(SumRange(length=len(values), max_abs=used.max_abs),))
    total = encoding.zeros()
    for _ in range(owners):
        total += encoding.encode(values.astype(np.float32), lambda count: np.zeros(count, np.uint16))
    return total.tobytes()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_impossible_numbers_or_words_are_refused(world: World) -> None:
    plan, names = world.plan, ("head", "bitfit")
    words = {BlockId(name): coded(plan, np.linspace(-0.1, 0.1, SPEC[BlockId(name)].size), 12, 12) for name in names}
    payloads = tuple(BlockPayload(block_id=name, values=block) for name, block in words.items())
    good = link_for(plan, words)

    def step(link: Link, sums: tuple[BlockPayload, ...] = payloads) -> AdapterState:
        return next_state(plan, INITIAL, ServerState(), link, sums, learning_rate_factor=1.0)[0]

    assert step(good).digests != INITIAL.digests
    lies = {
        "weight": 0, "weight ": 13, "survivors": np.array([13], ">u4").tobytes(), "population": 3,
        "owners": np.array([13, 12], ">u4").tobytes(), "owners ": np.array([0, 12], ">u4").tobytes(),
        "owners  ": b"", "weights": bytes(16), "outcome": bytes(32), "sums": bytes(32), "devices": 5,
    }  # fmt: skip
    for name, value in lies.items():
        with pytest.raises(SpecMismatch):
            step(replace(good, **{name.strip(): value}))
    for sums in (
        payloads[::-1],
        payloads[:1],
        (*payloads, payloads[0]),
        (replace(payloads[0], values=b""), payloads[1]),
    ):
        renamed = {part.block_id: part.values for part in sums}
        with pytest.raises(SpecMismatch):
            step(replace(good, sums=sums_digest(renamed) if len(sums) == 2 else good.sums), sums)
    beyond = {name: b"\xff" * len(block) for name, block in words.items()}
    wild = tuple(BlockPayload(block_id=name, values=block) for name, block in beyond.items())
    with pytest.raises(SpecMismatch, match="inputs can have"):
        step(replace(good, sums=sums_digest(beyond)), wild)


def test_the_classes_are_those_of_the_document(world: World) -> None:
    assert rules_that(lambda traits: traits.elementwise) == (
        "fedit", "fedrot", "fedsa", "ffa", "lora-a2", "nested", "rbla", "rolora",
    )  # fmt: skip

    def exact(**aggregate: object) -> bool:
        plan = toy(world, aggregate=world.plan.aggregate.model_copy(update=aggregate))
        return is_exact(plan, SPEC, RoundId(2))

    for rule in RULES:
        assert exact(rule=rule) == RULES[rule].elementwise
    assert exact(robust="median", buckets=4) and exact(robust="trimmed-mean", buckets=4)  # noqa: PT018
    for changes in (
        {"a_round_every": 2},
        {"fold_every": 2},
        {"auto_rank": 0.1},
        {"robust": "krum"},
        {"robust": "norm-bound"},
    ):
        assert not exact(**changes)


@pytest.mark.parametrize("robust", ["median", "trimmed-mean"])
def test_a_statistic_over_buckets_is_the_same_from_published_words(world: World, robust: str) -> None:
    aggregate = world.plan.aggregate.model_copy(update={"robust": robust, "buckets": 4})
    plan, draw = toy(world, aggregate=aggregate), np.random.default_rng(0)
    words = {
        BlockId(f"{name}@{bucket}"): coded(plan, draw.uniform(-1, 1, SPEC[BlockId(name)].size), 12, 3)
        for bucket in range(1, 5)
        for name in ("head", "bitfit")
    }
    payloads = tuple(BlockPayload(block_id=name, values=block) for name, block in words.items())
    link = link_for(plan, words, survivors=np.full(4, 3, ">u4").tobytes(), owners=np.full(8, 3, ">u4").tobytes())
    one = next_state(plan, INITIAL, ServerState(), link, payloads, learning_rate_factor=1.0)[0]
    two = next_state(plan, INITIAL, ServerState(), link, payloads, learning_rate_factor=1.0)[0]
    assert one.digests == two.digests != INITIAL.digests
