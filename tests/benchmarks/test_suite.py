"""The suite beside other systems: its arithmetic, what it refuses to compare, and Flower's messages counted."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

sys.path.insert(0, str(Path(__file__).parents[2]))  # before any library's package of this name
from benchmarks.suite.grid import InTurn
from benchmarks.suite.nvflare_peer import flat, load
from benchmarks.suite.places import PLACES, Cell, overrides_of
from benchmarks.suite.table import ahead, bars, best_of_grid, joined, lines, rounds_to

PLACE, STORIES = "airlines", "shakespeare"


def found(system: str, *, place: str = PLACE, **more: Any) -> dict[str, Any]:
    """A cell's result."""
    cell = Cell(place=place, system=system, rounds=5)
    one = {"place": place, "size": "short", "system": system, "rounds": cell.rounds, "seed": 0, "load": 3.2}
    one |= {"clients": 6, "steps": 6, "batch": 8, "sha_of_data": "sha256:aa", "start": None, "curve": []}
    one |= {"cpu_s": 2.0, "bytes_up": 1000, "bytes_down": 3000, "end": {"accuracy": 0.7, "worst": 0.5}}
    return one | more


def of(*cells: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {str(place): cell for place, cell in enumerate(cells)}


def story(system: str, end: float, start: float = 5.0) -> dict[str, Any]:
    return found(system, place=STORIES, start={"loss": start}, end={"loss": end, "worst": end + 0.1})


def test_a_peer_a_point_behind_is_level_and_one_further_ahead_is_not() -> None:
    (one,) = bars(of(found("fedpeft"), found("flower", end={"accuracy": 0.709, "worst": 0.4}, cpu_s=4.0)))
    assert (one["peer"], one["lead"], one["level_or_ahead"]) == ("flower", -0.009, True)
    assert (one["cpu"], one["no_more_cpu"], one["bytes"], one["half_the_bytes"]) == (0.5, True, 1.0, False)
    (one,) = bars(of(found("fedpeft"), found("flower", end={"accuracy": 0.72, "worst": 0.4}, bytes_down=7000)))
    assert (one["level_or_ahead"], one["bytes"], one["half_the_bytes"]) == (False, 0.5, True)


def test_language_models_are_compared_by_what_they_take_off_the_loss() -> None:
    ours, other = story("fedpeft", 4.0), story("flower", 4.5)
    assert ahead(ours, other, writes=True) == 0.5
    (one,) = bars(of(ours, other))
    assert one["level_or_ahead"]
    (one,) = bars(of(story("fedpeft", 4.04), story("flower", 4.0)))
    assert (one["lead"], one["level_or_ahead"]) == (-0.04, False)
    assert ahead(story("fedpeft", 5.5), story("flower", 5.2), writes=True) == 0.0  # nobody learnt: nobody leads


@pytest.mark.parametrize("key", ["sha_of_data", "clients", "steps", "batch"])
def test_runs_on_other_data_or_batches_are_not_compared(key: str) -> None:
    with pytest.raises(ValueError, match=f"the same {key}"):
        bars(of(found("fedpeft"), found("flower", **{key: 99})))


def test_runs_that_began_with_other_models_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not the same base"):
        bars(of(story("fedpeft", 4.0), story("flower", 4.0, start=5.01)))


def test_other_rounds_seeds_and_sizes_are_other_rows() -> None:
    cells = of(found("fedpeft"), found("flower", rounds=10), found("flower", seed=1), found("flower", size="whole"))
    assert bars(cells) == []


def test_the_best_of_a_grid_is_by_the_place_s_own_score() -> None:
    points = [found(f"grid rate={rate} steps=1", end={"accuracy": right, "worst": 0.1}) for rate, right in PAIRS]
    (one,) = best_of_grid(of(found("fedpeft"), *points, found("flower", end={"accuracy": 0.99, "worst": 0.1})))
    assert (one["best"], one["points"], one["lead"], one["within"]) == ("grid rate=0.03 steps=1", 3, -0.02, False)
    (one,) = best_of_grid(
        of(story("fedpeft", 4.02), story("grid rate=0.1 steps=1", 4.0), story("grid rate=1 steps=1", 6.0))
    )
    assert (one["best"], one["lead"], one["within"]) == ("grid rate=0.1 steps=1", -0.02, True)


PAIRS = ((0.01, 0.6), (0.03, 0.72), (0.1, 0.5))


def test_rounds_to_a_target_are_those_of_the_first_that_reaches_it() -> None:
    curve = [{"loss": 4.9, "accuracy": None}, {"loss": 4.6, "accuracy": 0.8}, {"loss": 4.4, "accuracy": 0.9}]
    assert rounds_to({"curve": curve}, 4.6, writes=True) == 2
    assert rounds_to({"curve": curve}, 0.9, writes=False) == 3
    assert rounds_to({"curve": curve}, 0.95, writes=False) is None


def test_scores_are_of_all_examples_and_the_worst_is_a_client() -> None:
    texts = joined({"a": (1.0, 9.0, 10), "b": (60.0, 10.0, 40)}, writes=False)
    assert (texts["loss"], texts["accuracy"], texts["worst"], texts["worst_client"]) == (1.22, 0.38, 0.25, "b")
    stories = joined({"a": (1.0, 0.0, 10), "b": (60.0, 0.0, 40)}, writes=True)
    assert (stories["worst"], stories["worst_client"], stories["held_out"]) == (1.5, "b", 50)


def test_the_table_has_a_row_for_each_cell_in_the_order_of_places() -> None:
    made = lines(of(story("flower", 4.5), found("fedpeft", curve=[{"loss": 1.0, "accuracy": 0.76}])))
    assert made[2:] == [
        "| airlines | 8 x 6 | 5 | fedpeft | 70.0 % | 50.0 % | 1, 3 | 2.0 | 1 | 3 |",
        "| shakespeare | 8 x 6 | 5 | flower | 5.000 -> 4.500 | 4.600 | 1, 3 | 2.0 | - | 3 |",
    ]


def test_every_system_is_cut_alike_and_whole_is_not_cut() -> None:
    short, whole = (overrides_of(Cell(place=PLACE, system="flower", rounds=5, whole=cut)) for cut in (False, True))
    assert set(PLACES[PLACE].short) == set(short) - set(whole)
    assert whole == ["run.seed=0", "rounds.count=5"]


def test_flowers_fedavg_over_clients_in_turn_is_the_weighted_mean_and_every_byte_is_counted() -> None:
    app, size = ClientApp(), 25_000

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        value = message.content.array_records["arrays"]["w"].numpy() + node
        record = ArrayRecord({"w": Array(value.astype(np.float32))})
        return Message(RecordDict({"arrays": record, "m": MetricRecord({"num-examples": node + 1})}), reply_to=message)

    grid = InTurn(app, 3)
    begin = ArrayRecord({"w": Array(np.zeros(size, np.float32))})
    result = FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays=begin, num_rounds=2)
    mean = (0 * 1 + 1 * 2 + 2 * 3) / 6
    assert np.allclose(result.arrays["w"].numpy(), 2 * mean)
    sent = 2 * 3 * 4 * size  # rounds, clients, bytes a number
    assert sent < grid.bytes_up < 1.05 * sent
    assert sent < grid.bytes_down < 1.05 * sent


class Adapter:
    """What travels, as ``PlainClient`` has it."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.now = arrays

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self.now.items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.now = arrays


def test_what_nvflare_gets_as_one_vector_comes_back_under_its_names() -> None:
    b, a = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7.0, 8.0], np.float32)
    client = Adapter(b=b, a=a)
    vector = flat(client)  # type: ignore[arg-type]
    assert vector.tolist() == [7, 8, 0, 1, 2, 3, 4, 5]
    load(client, vector + 1)  # type: ignore[arg-type]
    np.testing.assert_array_equal(client.now["b"], b + 1)
    np.testing.assert_array_equal(client.now["a"], a + 1)
    with pytest.raises(ValueError, match="Expected 8 values, found 9"):
        load(client, np.append(vector, 0.0))  # type: ignore[arg-type]
