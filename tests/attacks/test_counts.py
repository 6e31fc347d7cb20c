"""Can a coordinator solve how many examples a device has? Finding 3 of the attacks on the round.

The published rows of ordinary runs gave every device's exact number by linear algebra: cohorts differ from round to
round, and the sum of counts of each was one equation. Here the same run is made for real (fraction 0.7, eight devices,
the secure sum in full mode, honest coordinator) with two sets of counts that lie in the same size classes. What the
coordinator has is compared, and the equations are tried on it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.config import parse
from fedpeft.entropy import seeded_entropy
from fedpeft.ids import NodeId
from fedpeft.round.device.draws import example_weights, expanded
from fedpeft.round.device.records import OpenRound
from fedpeft.round.messages import Ready
from fedpeft.round.metrics import task_vector
from fedpeft.round.size_class import size_class
from fedpeft.round.summing import SecureSum
from fedpeft.round.transport import Stage
from fedpeft.tasks.measure import Confusion
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import enrol, fit_request, toy_task
from fedpeft.testing.network import FaultyTransport
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode
from fedpeft_server.run.federation import Federation
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.run.run_view import read_run

ROUNDS = 12
NAMES = "abcdefgh"
TRAINED = (23, 29, 37, 46, 31, 71, 27, 40)
HELD_OUT = (5, 6, 9, 12, 7, 14, 6, 9)
OTHERS_TRAINED = (30, 24, 40, 60, 44, 80, 32, 33)
OTHERS_HELD_OUT = (10, 2, 4, 30, 8, 3, 12, 20)
SPEC = toy_spec({"head": 4, "lora.B.t2": 4, "lora.B.t4": 4})
OWNER_OF_THE_TIER = "d"


def fleet_of(trained: Sequence[int], held_out: Sequence[int]):
    trainers = {}
    for place, name in enumerate(NAMES):
        own = ("head", "lora.B.t2", *(["lora.B.t4"] if name == OWNER_OF_THE_TIER else []))
        held = held_out[place]
        trainers[name] = GivenTrainer(
            SPEC,
            {block: np.full(4, 0.01 * (place + 1), np.float32) for block in own},
            examples=trained[place],
            measured=(0.4 * held, held // 2 if held % 2 == 0 else held, held),
        )
    return enrol(trainers)


def the_run(folder: Path, trained: Sequence[int], held_out: Sequence[int], rule: str):
    """One ordinary run: its published rows, and every sum that its coordinator opened."""
    table = f'[rounds]\ncount = {ROUNDS}\nfraction = 0.7\nmin_devices = 3\n[aggregate]\nrule = "{rule}"\n'
    text = toy_run(table, clients=8, name="counts")
    if rule == "fedit":
        text = text.replace("rank = 4", 'rank = 4, train = "both"')
    config = parse(text, source="run.toml", simulation=True).model_copy(update={"directory": folder})
    fleet, opened = fleet_of(trained, held_out), list[secagg.Summed]()

    class Recording(SecureSum):
        def close_stage(self):  # type: ignore[no-untyped-def]
            end = super().close_stage()
            if isinstance(end, secagg.Summed):
                opened.append(end)
            return end

    run = RunDirectory.create(config, source="", adapter=SPEC, base_digest="sha256:toy", command=())
    plan = toy_plan(SPEC).model_copy(update={"aggregate": config.aggregate, "run_id": run.manifest.run_id})
    with run:
        Federation(
            config,
            plan,
            run,
            FaultyTransport(fleet.handles, FakeClock(), ()),
            identity=fleet.coordinator,
            clock=FakeClock(),
            observe=lambda _: None,
            publish=lambda *_: None,
            entropy=seeded_entropy(0, "counts"),
            open_sum=Recording,
        ).train(toy_state(SPEC))
    return read_run(run.path).rounds, opened


@pytest.fixture(scope="module", params=["nested", "fedit"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("counts")
    return [
        the_run(folder / name, trained, held, request.param)
        for name, trained, held in (("one", TRAINED, HELD_OUT), ("other", OTHERS_TRAINED, OTHERS_HELD_OUT))
    ]


def cohorts(rows: Sequence[RoundMetrics]) -> np.ndarray:
    """(rounds, devices): who was in the sum, as the rows say."""
    states = [{client.client: client.state for client in row.clients} for row in rows]
    return np.array([[float(state.get(name) == "summed") for name in NAMES] for state in states])


def solvable(matrix: np.ndarray) -> list[str]:
    """Whose own number follows from one number a round: the devices whose unit vector is in the row space."""
    rank, units = np.linalg.matrix_rank(matrix), dict(zip(NAMES, np.eye(len(NAMES)), strict=True))
    return [name for name, unit in units.items() if np.linalg.matrix_rank(np.vstack([matrix, unit])) == rank]


def test_the_cohorts_of_the_run_would_solve_any_number_that_is_summed_every_round(runs) -> None:
    """The attack is there: a count in any lane would be solved for all eight."""
    rows, _ = runs[0]
    assert solvable(cohorts(rows)) == list(NAMES)
    counts = cohorts(rows) @ np.array(HELD_OUT, float)
    found, *_ = np.linalg.lstsq(cohorts(rows), counts, rcond=None)
    np.testing.assert_allclose(found, HELD_OUT, atol=1e-6)


def test_no_number_in_the_rows_gives_the_counts_to_the_equations(runs) -> None:
    rows, _ = runs[0]
    matrix = cohorts(rows)
    for key in asdict(rows[0]):
        column = [getattr(row, key) for row in rows]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
            continue
        found, *_ = np.linalg.lstsq(matrix, np.array(column, float), rcond=None)
        for truth in (HELD_OUT, TRAINED):
            hits = sum(abs(value - count) < 0.5 for value, count in zip(found, truth, strict=True))
            assert hits <= 3, f"{key} gives {found}"


def test_two_runs_whose_counts_lie_in_the_same_classes_open_the_same_sums(runs) -> None:
    """Stronger than any equation: nothing that was opened moves with a count within its class.

    Accuracies are rounded at random, so they may differ by 1/64 on each device.
    """
    assert [size_class(n) for n in TRAINED] == [size_class(n) for n in OTHERS_TRAINED]
    assert TRAINED != OTHERS_TRAINED
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        assert one.weight_classes == other.weight_classes
        assert one.survivors == other.survivors
        assert one.sums.keys() == other.sums.keys()
        assert one.skipped == other.skipped
        for block_id, summed in one.sums.items():
            if block_id == "metrics":
                np.testing.assert_allclose(summed.values[0], other.sums[block_id].values[0], rtol=1e-4)
            else:
                np.testing.assert_allclose(summed.values, other.sums[block_id].values, rtol=1e-4, atol=1e-7)


def test_a_tier_that_stays_masked_tells_nothing_of_its_only_owner(runs) -> None:
    """Its weight was opened beside the masked block: 46 examples in clear, in one round, from an honest coordinator."""
    rows, opened = runs[0]
    there = cohorts(rows)[:ROUNDS, NAMES.index(OWNER_OF_THE_TIER)] > 0
    assert there.any()
    for is_there, summed in zip(there, opened[:ROUNDS], strict=True):
        assert not is_there or "lora.B.t4" in summed.skipped
    assert not any("weight" in block_id for summed in opened for block_id in summed.sums)


HELD = (5, 6, 7, 9, 11, 12, 14)
CONSTANT_ROUNDS = 400


def shares_found(held: int, *, device: str, draws: str, rounds: int = CONSTANT_ROUNDS) -> list[np.ndarray]:
    """What linear algebra leaves of one device's shares of three classes, round by round: as its sums have them.

    The state hardly moves and the model is always right, so the shares are the same in every round.
    """
    examples = [np.array([place, *device.encode()], np.int32) for place in range(held)]
    classes = np.array([0] * (held - 3) + [1, 1, 2])
    measure = Confusion(("a", "b", "c"))
    scores = np.eye(3, dtype=np.float32)[classes]
    lasting = seeded_entropy(held, "draws", device)(32)
    found = []
    for number in range(rounds):
        weights = example_weights(lasting if draws == "lasting" else b"", examples)
        lanes = sum(w * measure.tally(scores[[i]], classes[[i]], [0]) for i, w in enumerate(weights)) / weights.sum()
        entropy = expanded(lasting) if draws == "lasting" else seeded_entropy(number, "fresh", device)
        found.append(task_vector(1.0, lanes, measure, entropy).reshape(3, 3).sum(1))
    return found


def denominator(shares: Sequence[np.ndarray]) -> int:
    """The least number of examples whose shares these can be, within what 400 rounds leave of rounding; 0: none."""
    mean = np.mean(shares, axis=0)
    return next((q for q in range(1, 200) if np.abs(mean * q - np.rint(mean * q)).max() < 3e-4 * q), 0)


def test_fresh_draws_would_tell_how_many_held_out_examples_a_device_has() -> None:
    """The attack is there: what does not move is averaged over the rounds, and a fraction has a denominator."""
    found = [denominator(shares_found(held, device=f"d{held}", draws="fresh")) for held in HELD]
    assert found == list(HELD)


def test_lasting_draws_and_weights_do_not_tell_how_many_held_out_examples_a_device_has() -> None:
    for held in HELD:
        rounds = shares_found(held, device=f"d{held}", draws="lasting", rounds=20)
        assert all(np.array_equal(rounds[0], other) for other in rounds), "more rounds tell more"
    hits = sum(
        denominator(shares_found(held, device=f"{held}-{trial}", draws="lasting", rounds=1)) == held
        for held in HELD
        for trial in range(20)
    )
    assert hits <= 14, f"{hits} of 140 counts were found"


def test_a_devices_accuracy_of_a_state_that_does_not_move_is_rounded_alike_in_every_round() -> None:
    """Through the product: a real device puts the same two lanes into each round."""
    trainers = {name: GivenTrainer(SPEC, {"head": np.zeros(4, np.float32)}, measured=(2.0, 5, 7)) for name in NAMES}
    fleet, plan = enrol(trainers), toy_plan(SPEC)
    lanes = set()
    for round_id in (1, 2, 3):
        request = fit_request(fleet, plan, toy_state(SPEC), task=toy_task(plan, round_id=round_id))
        assert isinstance(decode(fleet.devices[NodeId(1000)].handle(Stage.FIT, encode(request)), Ready), Ready)
        opened = decode(fleet.stores["a"].values["open-round"], OpenRound)
        lanes |= {part.values for part in opened.inputs if part.block_id == "metrics"}
    assert len(lanes) == 1
