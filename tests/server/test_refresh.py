"""A later round of class means: the head is made of its sum alone, or stays."""

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec
from fedpeft.aggregate import ServerState
from fedpeft.aggregate.head_start import HEAD_BLOCK
from fedpeft.config import RunConfig, parse
from fedpeft.ids import ParticipantId, RoundId, SizeClass
from fedpeft.round.history import Past
from fedpeft.round.plan import learning_plan
from fedpeft.round.task import RoundOutcome, RoundTask
from fedpeft.secagg.coordinator_state import BlockSum
from fedpeft.testing.runs import toy_run
from fedpeft_server.run.aggregation import Aggregation

SPEC = AdapterSpec(
    blocks=(
        BlockSpec(
            block_id=HEAD_BLOCK,
            method="head",
            tensors=(TensorSpec(name="out.weight", shape=(2, 3)), TensorSpec(name="out.bias", shape=(2,))),
        ),
    )
)
OLD = AdapterState(SPEC, {HEAD_BLOCK: np.array([9, -9, 9, -9, 9, -9, 0.5, -0.5], np.float32)})
PAST = Past(first=b"", head=b"")
EVERYBODY = frozenset(map(ParticipantId, (1, 2, 3, 4)))
TEXT = toy_run("[aggregate]\nweight = 'uniform'", clients=4).replace(
    "[adapter]\n", '[adapter]\nhead_start = "class-means"\nhead_refresh = 2\n'
)


def advanced(owners: frozenset[ParticipantId], round_id: int) -> AdapterState:
    """The state after a round in which each owner sent rows of a quarter and an eighth."""
    config: RunConfig = parse(TEXT, source="run.toml", simulation=True)
    plan = learning_plan(config, run_id="toy", base="sha256:toy", adapter_spec=SPEC.digest)
    sent = np.array([0.25] * 3 + [0.125] * 3 + [0, 0], np.float64)
    sums = {HEAD_BLOCK: BlockSum(values=len(owners) * sent, members=owners)} if owners else {}
    summed = secagg.Summed(
        sums=sums,
        survivors=EVERYBODY,
        context=b"",
        weight_classes=dict.fromkeys(EVERYBODY, SizeClass(0)),
        skipped={} if owners else {HEAD_BLOCK: "too few"},
        rejected={},
    )
    task = RoundTask(round_id=RoundId(round_id), attempt=1, plan=plan, past=PAST, blocks=frozenset({HEAD_BLOCK}))
    outcome = RoundOutcome(
        result=summed, traffic={}, participants={place: str(place) for place in EVERYBODY}, is_final=True
    )
    return Aggregation(config, plan).advance(task, OLD, ServerState(), outcome, summed, population=4)[0]


@pytest.mark.parametrize("owners", [EVERYBODY, frozenset(map(ParticipantId, (1, 2, 3)))])
def test_nothing_of_the_old_rows_is_in_the_new_head(owners: frozenset[ParticipantId]) -> None:
    head = advanced(owners, 3)[HEAD_BLOCK]
    share = len(owners) / len(EVERYBODY)
    np.testing.assert_allclose(head, [0.25 * share] * 3 + [0.125 * share] * 3 + [0.5, -0.5])


def test_a_refresh_that_too_few_took_part_in_leaves_the_head() -> None:
    assert advanced(frozenset(), 3) is OLD
