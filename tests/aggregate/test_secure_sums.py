"""Under secure aggregation every rule sees exact sums, whatever ranks and methods the devices have.

Deltas are multiples of 2^-10 and weights are one, so that the ring rounds nothing: equality is exact.
"""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft import secagg
from fedpeft.aggregate import ServerState, settled
from fedpeft.aggregate.factors import read_factors
from fedpeft.config import RunConfig, parse
from fedpeft.config.model import Rounds
from fedpeft.entropy import generator
from fedpeft.ids import BlockId
from fedpeft.round.coordinator import run_round
from fedpeft.round.task import RoundOutcome, RoundTask
from fedpeft.round.work import dealt_buckets, planned_blocks
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol, exact_terms, toy_task
from fedpeft.testing.lora_states import PATHS, lora_spec, lora_state, owned
from fedpeft.testing.network import FaultyTransport
from fedpeft.testing.trainers import GivenTrainer, toy_plan
from fedpeft_server.run.aggregation import Aggregation

SPEC = lora_spec()
STATE = lora_state(SPEC, 0)
SOURCE = """
run = {name = "small"}
base = {model = "pypi:some-model"}
task = {kind = "classify", labels = ["no", "yes"]}
data = {source = "x.jsonl", partition = {by = "iid", clients = 9}}
adapter = {lora = {rank = 4, tiers = [1, 2, 4], train = "both"}, bitfit = {}}
rounds = {count = 3, min_devices = 9}
[[device]]
clients = ["*"]
methods = ["lora"]
"""
DEVICE = st.tuples(st.sampled_from([0, 1, 2, 4]), st.booleans(), st.booleans()).filter(any)
"""Rank (0: no LoRA), biases or not, head or not."""


def run_config(**aggregate: object) -> RunConfig:
    config = parse(SOURCE, source="run.toml", simulation=True)
    rule = config.aggregate.model_validate({"weight": "uniform", **aggregate})
    return config.model_copy(update={"aggregate": rule})


def one_round(
    config: RunConfig, deltas: list[dict[str, np.ndarray]], *, round_id: int = 1, **train: object
) -> tuple[Aggregation, RoundTask, RoundOutcome]:
    """One secure round of devices with these deltas under the config's rule."""
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, own, first=STATE) for i, own in enumerate(deltas)})
    members = fleet.members()
    plan = toy_plan(SPEC, secagg=exact_terms(len(members)))
    plan = plan.model_copy(
        update={"aggregate": config.aggregate, "adapter": config.adapter, "train": plan.train.model_copy(update=train)}
    )
    aggregation = Aggregation(config, plan)
    task = aggregation.asked(toy_task(plan, round_id=round_id, state=STATE), STATE, ServerState())
    outcome = run_round(
        task, STATE, members, FaultyTransport(fleet.handles, FakeClock(), ()), rounds=Rounds(),
        identity=fleet.coordinator, entropy=fleet.entropy, observe=lambda _: None,
    )  # fmt: skip
    return aggregation, task, outcome


def drawn(devices: list[tuple[int, bool, bool]], seed: int) -> list[dict[str, np.ndarray]]:
    draw = generator(seed, "deltas")
    found = []
    for rank, biases, head in devices:
        others = ("bitfit",) * biases + ("head",) * head
        names = owned(rank, others=others)
        found.append({b: (draw.integers(-64, 65, SPEC[b].size) / 1024).astype(np.float32) for b in names})
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(DEVICE, min_size=3, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from(["fedit", "nested"]))
def test_the_sum_of_any_mix_of_ranks_and_methods_is_exact(
    devices: list[tuple[int, bool, bool]], seed: int, rule: str
) -> None:
    deltas = drawn(devices, seed)
    _, task, outcome = one_round(run_config(rule=rule), deltas)
    assert isinstance(outcome.result, secagg.Summed)
    for block_id in planned_blocks(task.plan, SPEC, task.round_id):
        owners = [own[block_id] for own in deltas if block_id in own]
        if len(owners) >= 3:
            assert np.array_equal(outcome.result.sums[block_id].values, np.sum(owners, axis=0, dtype=np.float64))
        else:
            assert block_id in outcome.result.skipped, "a sum of two is no secret"


def test_the_default_moves_the_product_by_exactly_the_mean_of_the_devices_products() -> None:
    deltas = drawn([(1, False, True), (2, True, False), (4, False, True), (4, True, True), (4, False, False)], 1)
    aggregation, task, outcome = one_round(run_config(), deltas)
    assert isinstance(outcome.result, secagg.Summed)
    moved, _ = aggregation.advance(task, STATE, ServerState(), outcome, outcome.result, population=5)
    old, new = read_factors(SPEC, STATE), read_factors(SPEC, moved)
    for path in PATHS:
        steps = [read_factors(SPEC, {b: d for b, d in own.items() if ".B." in b})[path].up for own in deltas]
        expected = sum(steps) @ old[path].down / 5
        np.testing.assert_allclose(new[path].up @ new[path].down - old[path].up @ old[path].down, expected, atol=1e-6)
        assert np.array_equal(new[path].down, old[path].down), "A stays as it began"


def test_a_bad_device_spoils_one_bucket_and_the_median_leaves_it_out() -> None:
    fine, huge = np.full(4, 0.125, np.float32), np.full(4, 100.0, np.float32)
    deltas = [{"head": huge if i == 4 else fine} for i in range(9)]
    aggregation, task, outcome = one_round(run_config(robust="median", buckets=3), deltas)
    assert isinstance(outcome.result, secagg.Summed)
    moved, _ = aggregation.advance(task, STATE, ServerState(), outcome, outcome.result, population=9)
    head = BlockId("head")
    np.testing.assert_allclose(moved[head] - STATE[head], 0.125, atol=1e-6)
    plain, task, outcome = one_round(run_config(), deltas)
    assert isinstance(outcome.result, secagg.Summed)
    moved, _ = plain.advance(task, STATE, ServerState(), outcome, outcome.result, population=9)
    assert np.abs(moved[head] - STATE[head]).min() > 5, "without buckets it moves the mean"


def test_buckets_change_from_round_to_round_and_never_fall_below_the_cohort() -> None:
    config = run_config(robust="median", buckets=3)
    plan = toy_plan(SPEC).model_copy(update={"aggregate": config.aggregate})
    names = [f"d{i}" for i in range(9)]
    rounds = [dealt_buckets(plan, names, number) for number in (1, 2)]
    assert rounds[0] != rounds[1]
    assert sorted(rounds[0].values()) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert sorted(dealt_buckets(plan, names[:7], 1).values()) == [1, 1, 1, 1, 2, 2, 2]


def test_scaffolds_control_is_the_mean_gradient_of_the_round() -> None:
    config = run_config()
    config = config.model_copy(update={"train": config.train.model_copy(update={"scaffold": True})})
    delta = np.full(4, -0.5, np.float32)
    aggregation, task, outcome = one_round(config, [{"head": delta}] * 4, warmup_rounds=1, scaffold=True)
    assert isinstance(outcome.result, secagg.Summed)
    assert task.learning_rate_factor == 0.5
    _, server = aggregation.advance(
        task, STATE, ServerState(), outcome, outcome.result,
        population=4,
    )  # fmt: skip
    # 4 local steps of learning rate 0.1 x 0.5: a mean gradient of 0.5 / 0.2.
    np.testing.assert_allclose(server.control[BlockId("head")], 2.5, rtol=1e-6)


def test_auto_rank_drops_the_tiers_that_carry_nothing_and_says_what_that_saves() -> None:
    config = run_config(auto_rank=0.01, auto_rank_after=2)
    plan = toy_plan(SPEC).model_copy(update={"aggregate": config.aggregate})
    small = {b: 1e-3 * STATE[b] for b in STATE if b.startswith("lora.B.t4")}
    state = settled(config.aggregate, STATE.replace(small), round_id=2, seed=0)
    last = read_factors(SPEC, state)[PATHS[0]].up[:, 2:]
    assert np.square(last).sum() < np.square(read_factors(SPEC, state)[PATHS[0]].up).sum() * 0.01
    log: list[dict[str, object]] = []
    aggregation = Aggregation(config, plan, record=lambda kind, **entry: log.append({"kind": kind, **entry}))
    early = aggregation.asked(toy_task(plan, round_id=2), state, ServerState())
    late = aggregation.asked(toy_task(plan, round_id=3), state, ServerState())
    assert (early.blocks or frozenset()) - (late.blocks or frozenset()) == {"lora.B.t4"}
    detail = {"tiers": "lora.B.t4", "bytes_up_saved_a_device": 4 * SPEC[BlockId("lora.B.t4")].size}
    assert log == [{"kind": "tiers.dropped", "round_id": 3, "detail": detail}]
