"""When devices make a run's next state themselves, and the parts of that step that no toy run comes to."""

import numpy as np
import pytest

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.aggregate import ServerState
from fedpeft.config.model import AdaLora, Adapter, Aggregate, Lora, SecureAggregation
from fedpeft.config.privacy import Privacy
from fedpeft.errors import ConfigInvalid, SpecMismatch
from fedpeft.ids import BlockId, RoundId
from fedpeft.privacy.noised_metrics import METRIC_LANES
from fedpeft.round.history import BURNT
from fedpeft.round.messages import Link
from fedpeft.round.noise import planned_mechanism
from fedpeft.round.plan import LearningPlan
from fedpeft.round.transition import Opened, _controls, _decoded, advanced, is_exact
from fedpeft.testing.trainers import toy_plan, toy_spec, toy_state

SPEC = toy_spec({"head": 4, "lora.B.t4": 6})
PLAN = toy_plan(SPEC)
HEAD = BlockId("head")


def planned(**changes: object) -> LearningPlan:
    return PLAN.model_copy(update=changes)


def trained(**changes: object) -> LearningPlan:
    return planned(train=PLAN.train.model_copy(update=changes))


MEASURING = Adapter.having(Lora(rank=4), head_start="class-means", head_refresh=3)


@pytest.mark.parametrize(
    ("plan", "round_id", "exact"),
    [
        (PLAN, 1, True),
        (PLAN, 100, True),
        (PLAN, 101, False),  # the evaluation after the last round leaves no state
        (planned(secagg=SecureAggregation(mode="off")), 2, False),
        (planned(secagg=SecureAggregation(mode="fast")), 2, True),
        (planned(aggregate=Aggregate(rule="fedsvd")), 2, False),
        (planned(aggregate=Aggregate(a_round_every=3)), 2, False),
        (planned(aggregate=Aggregate(fold_every=3)), 2, False),
        (planned(aggregate=Aggregate(auto_rank=0.1)), 2, False),
        (planned(aggregate=Aggregate(robust="median", buckets=3)), 2, True),
        (planned(aggregate=Aggregate(robust="trimmed-mean", buckets=3)), 2, True),
        (planned(aggregate=Aggregate(robust="krum", buckets=7)), 2, False),
        (planned(adapter=MEASURING), 1, False),
        (planned(adapter=MEASURING), 2, True),
        (planned(adapter=MEASURING), 4, False),
        (planned(adapter=Adapter.having(Lora(rank=4, start="gradient"))), 1, False),
        (planned(adapter=Adapter.having(Lora(rank=4, start="gradient"))), 2, True),
        (planned(adapter=Adapter.having(Lora(rank=4), AdaLora())), 2, False),
        (trained(scaffold=True, learning_rate=0.1), 2, True),
        (trained(scaffold=True, learning_rate="auto"), 2, False),
        (trained(scaffold=False, learning_rate="auto"), 2, True),
    ],
)
def test_a_step_is_exact_where_no_part_of_it_may_round_otherwise_elsewhere(
    plan: LearningPlan, round_id: int, exact: bool
) -> None:
    assert is_exact(plan, SPEC, RoundId(round_id)) == exact


def opened(sums: dict[str, list[float]], **changes: object) -> Opened:
    named = {BlockId(name): np.array(values, np.float64) for name, values in sums.items()}
    known: dict[str, object] = {
        "round_id": RoundId(1), "sums": named, "owners": dict.fromkeys(named, 2),
        "owner_weights": dict.fromkeys(named, 2.0), "total_weight": 4.0, "survivors": (4,), "population": 8,
        "learning_rate_factor": 0.5,
    }  # fmt: skip
    return Opened(**{**known, **changes})  # type: ignore[arg-type]


def test_scaffolds_control_moves_from_the_old_one_by_the_share_of_those_who_were_there() -> None:
    """c - (4 of 8) x (2 of 4 owners x c + sum / (weight 4 x 4 steps x rate 0.1 x factor 0.5))."""
    plan = trained(scaffold=True, optimizer="sgd")
    before = ServerState(control={HEAD: np.array([1.0, -2.0, 0.0, 4.0], np.float32)})
    sums = opened({"head": [0.8, 0.8, -0.8, 0.0], "lora.B.t4": [1.6] * 6})
    found = _controls(plan, SPEC, before, sums)
    assert found[HEAD] == pytest.approx([0.25, -2.0, 0.5, 3.0])
    assert found[BlockId("lora.B.t4")] == pytest.approx([-1.0] * 6), "from zero, of a block that had none"
    everybody = _controls(plan, SPEC, before, opened({"head": [0.8] * 4}, population=3))
    assert everybody[HEAD] == pytest.approx([-0.5, -2.0, -1.0, 1.0]), "no more of them than all"


@pytest.mark.parametrize("buckets", [0, 2])
def test_a_head_that_too_few_devices_measured_stays_as_it_is(buckets: int) -> None:
    head = BlockSpec(
        block_id=HEAD, method="head", tensors=(TensorSpec(name="w", shape=(2, 2)), TensorSpec(name="b", shape=(2,)))
    )
    spec = AdapterSpec(blocks=(head, *(block for block in SPEC.blocks if block.block_id != HEAD)))
    plan = planned(adapter=MEASURING, aggregate=Aggregate(robust="none", buckets=buckets))
    state = toy_state(spec)
    same, server = advanced(plan, state, ServerState(), opened({}))
    assert same is state
    assert server == ServerState()
    if not buckets:
        moved, _ = advanced(plan, state, ServerState(), opened({"head": [0.5] * 6}))
        assert moved.digests[HEAD] != state.digests[HEAD]


@pytest.mark.parametrize("metrics", ["suppressed", "noised"])
@pytest.mark.parametrize("clip", ["fixed", "adaptive"])
def test_the_bit_and_the_metrics_count_in_the_grid_that_a_sum_is_decoded_by(clip: str, metrics: str) -> None:
    """Rounding costs what all coordinates together may: with the lanes that a run adds, and with no other."""
    privacy = Privacy.model_validate(
        {
            "unit": "client", "epsilon": 8.0, "delta": 0.01, "noise_multiplier": 1.0, "colluders": 0, "clip": clip,
            "metrics": metrics,
        }
    )  # fmt: skip
    secure = SecureAggregation.model_validate({"bits": 16, "min_cohort": 4, "mode": "full"})

    def fits(parameters: int) -> bool:
        try:
            planned_mechanism(privacy, secure, devices=4, l2_clip_norm=1.0, z=1.0, parameters=parameters)
        except ConfigInvalid:
            return False
        return True

    most, beyond = 1, 1 << 24
    assert fits(most)
    assert not fits(beyond)
    while beyond - most > 1:
        middle = (most + beyond) // 2
        most, beyond = (middle, beyond) if fits(middle) else (most, middle)
    lanes = (clip == "adaptive") + METRIC_LANES * (metrics == "noised")
    for size, right in ((most - lanes, True), (most - lanes + 1, False)):
        spec = toy_spec({"lora.B.t4": size})
        plan = toy_plan(spec, secagg=secure).model_copy(update={"client_privacy": privacy})
        words = bytes(size * secure.noise_bits // 8)
        if right:
            assert not _decoded(plan, spec, link(), BlockId("lora.B.t4"), words, 4).any()
        else:
            with pytest.raises(SpecMismatch, match="that the plan gives"):
                _decoded(plan, spec, link(), BlockId("lora.B.t4"), words, 4)


def link() -> Link:
    return Link(
        round_id=1, attempt=1, state=bytes(32), outcome=BURNT, sums=BURNT, devices=4, population=4, survivors=b"",
        weight=4, owners=b"", weights=b"", clip=1.0,
    )  # fmt: skip
