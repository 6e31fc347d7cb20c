"""Which state a run keeps, when it stops, and what it says of itself: from the rows of metrics.jsonl alone."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.config import RunConfig, parse
from fedpeft.config.model import Rounds
from fedpeft.round.local import Effort, LocalResult
from fedpeft.testing.fleet import ToyFleet, enrol
from fedpeft.testing.network import CoordinatorKilled
from fedpeft.testing.runs import toy_run
from fedpeft.testing.trainers import GivenTrainer, one_hot
from fedpeft_server.run.records import Comparison, RoundMetrics
from fedpeft_server.run.verdict import best_row, comparison_facts, is_done, kept_round, new_warnings, verdict

sys.path.insert(0, str(Path(__file__).parent))
from world import HEAD, INITIAL, SPEC, World, raising_at


def rows_of(losses: list[float | None], accuracies: list[float] | None = None) -> list[RoundMetrics]:
    """Rows 1, 2, ... with these means."""
    shares = accuracies or [0.5 + 0.03 * i for i in range(len(losses))]
    return [
        RoundMetrics(
            round=place,
            loss=loss,
            accuracy=None if loss is None else share,
            evaluators=0 if loss is None else 3,
            devices_invited=3,
            devices_ready=3,
            devices_survived=3,
            bytes_up=0,
            bytes_down=0,
            seconds=1.0,
        )
        for place, (loss, share) in enumerate(zip(losses, shares, strict=True), 1)
    ]


def config_of(count: int, patience: int = 0, *, kind: str = "classify") -> RunConfig:
    config = parse(toy_run("", clients=3), source="run.toml", simulation=True)
    rounds = config.rounds.model_copy(update={"count": count, "patience": patience})
    return config.model_copy(update={"rounds": rounds, "task": config.task.model_copy(update={"kind": kind})})


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([1.0, 0.8, 0.6, 0.5], None),  # the last is the best
        ([1.0, 0.5, 0.9, 0.8], 1),
        ([1.0, 0.5, 0.6, 0.505], None),  # as good as the best, on other examples
        ([0.5, 0.9, 0.9, 0.9], 0),
        ([None, None, None, None], None),  # private
        ([1.0, 0.5, 0.6], 1),  # stopped before its last state was evaluated
    ],
)
def test_the_best_state_is_kept_unless_the_last_is_as_good(losses: list[float | None], kept: int | None) -> None:
    assert kept_round(rows_of(losses), Rounds(count=3)) == kept


def test_the_best_state_can_be_chosen_by_accuracy() -> None:
    rows = rows_of([1.0, 0.5, 0.6, 0.7], [0.3, 0.6, 0.8, 0.7])
    assert kept_round(rows, Rounds(count=3)) == 1
    assert kept_round(rows, Rounds(count=3, metric="accuracy")) == 2
    best = best_row(rows, Rounds(count=3, metric="accuracy"))
    assert best is not None
    assert best.round == 3


def test_a_run_is_done_after_so_many_evaluations_without_a_better_one() -> None:
    losses: list[float | None] = [1.0, 0.5, 0.6, 0.55, 0.52]
    assert [is_done(rows_of(losses[:n]), Rounds(count=9, patience=2)) for n in range(6)] == [False] * 4 + [True] * 2
    assert not is_done(rows_of(losses), Rounds(count=9))
    assert not is_done(rows_of([None] * 5), Rounds(count=9, patience=1))


@pytest.mark.parametrize(
    ("losses", "accuracies", "said"),
    [
        ([1.0, 0.8, 0.6, 0.5], None, "still falling"),
        ([1.0, 0.99, 0.985, 0.98], None, "to 0.98 only, by 2.0%"),
        ([1.0, 0.5, 0.9, 0.8], None, "Kept: the state after round 1, loss 0.5"),
        ([1.0, 0.8, 0.9, 1.8], None, "destroys the model"),
        ([1.0, 0.8, 0.7, 0.65], [0.4, 0.641, 0.643, 0.641], "one class"),
        ([1.0, 0.3, 0.9, 0.3, 0.9], [0.5, 1.0, 0.52, 1.0, 0.52], "fell by up to 48 points"),
    ],
)
def test_a_run_says_what_it_saw(losses: list[float | None], accuracies: list[float] | None, said: str) -> None:
    assert said in " ".join(verdict(rows_of(losses, accuracies), config_of(len(losses) - 1)))


def test_a_run_without_fault_is_not_warned_about() -> None:
    rows = rows_of([1.0, 0.6, 0.45, 0.4, 0.39, 0.388], [0.4, 0.7, 0.78, 0.8, 0.82, 0.81])
    assert verdict(rows, config_of(5)) == ()
    assert verdict(rows_of([None] * 4), config_of(3)) == ()


def test_an_accuracy_of_tokens_that_stands_still_is_no_fault() -> None:
    rows = rows_of([3.0, 2.5, 2.3, 2.2], [0.4, 0.45, 0.45, 0.45])
    assert not any("one class" in line for line in verdict(rows, config_of(3, kind="causal-lm")))


@pytest.mark.parametrize(("kind", "metric", "generate"), [("causal-lm", "auto", 8), ("regression", "spearman", 0)])
def test_a_metric_that_nothing_measures_is_said(kind: str, metric: str, generate: int) -> None:
    config, rows = config_of(3, kind=kind), rows_of([3.0, 2.5, 2.3, 2.2])
    task = config.task.model_copy(update={"generate": generate})
    config = config.model_copy(update={"task": task, "rounds": config.rounds.model_copy(update={"metric": metric})})
    assert any("not measured, since no held-out example" in line for line in verdict(rows, config))
    measured = [replace(row, metrics={"rouge_l": 0.1, "exact_match": 0.0, "spearman": 0.1}) for row in rows]
    assert not any("not measured" in line for line in verdict(measured, config))


@pytest.mark.parametrize(("patience", "metric"), [(2, "auto"), (0, "accuracy"), (1, "f1_macro")])
def test_a_private_run_says_that_nothing_chooses_its_state_or_ends_it_early(patience: int, metric: str) -> None:
    config, rows = config_of(3), rows_of([None] * 3)
    rounds = config.rounds.model_copy(update={"patience": patience, "metric": metric})
    asking = config.model_copy(update={"rounds": rounds})
    private = {"privacy": config.privacy.model_copy(update={"unit": "client"})}
    (said,) = verdict(rows, asking.model_copy(update=private))
    assert "without effect under [privacy]" in said
    assert new_warnings(rows[:1], asking.model_copy(update=private)) == (said,)
    assert not new_warnings(rows, asking.model_copy(update=private)), "once"
    assert not verdict(rows, asking)
    assert not verdict(rows, config.model_copy(update=private))


def test_a_warning_is_new_once() -> None:
    rows = rows_of([1.0, 0.8, 1.8, 1.9])
    assert [len(new_warnings(rows[:n], config_of(3))) for n in range(1, 5)] == [0, 0, 1, 0]


class Worsening(GivenTrainer):
    """Its deltas are given; its loss is best after round 1."""

    def fit(self, plan, state, work, effort=Effort.FULL) -> LocalResult:  # type: ignore[no-untyped-def]
        losses = [1.0, 0.5, 0.9, 0.95, 0.99, 1.0, 1.0]
        return replace(super().fit(plan, state, work, effort), evaluated_loss=4 * losses[work.round_id - 1])


def worsening() -> ToyFleet:
    return enrol({name: Worsening(SPEC, {"head": one_hot(5, place)}) for place, name in enumerate("abcde")})


@pytest.mark.parametrize("kept", [1, 3])
def test_the_final_adapter_is_the_best_state(tmp_path: Path, kept: int) -> None:
    world = World(tmp_path, worsening(), count=5, checkpoints_kept=kept)
    state = world.train()
    np.testing.assert_allclose(state[HEAD].astype(np.float64) - INITIAL[HEAD], 1 / 5, atol=1e-6)
    left = world.outcome()
    assert left["final"] == left["best"] == state.to_safetensors() != left["latest"]
    assert left["problems"] == []


def test_a_run_stops_when_nothing_gets_better_and_stays_stopped(tmp_path: Path) -> None:
    world = World(tmp_path, worsening(), count=5, patience=2)
    state = world.train()
    rows = world.outcome()["rows"]
    assert isinstance(rows, list)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    world.restart()
    assert world.train().to_safetensors() == state.to_safetensors()
    assert world.outcome()["rows"] == rows


@pytest.mark.parametrize("what", ["commit 4", "final"])
def test_a_run_killed_at_its_early_end_keeps_the_same_state(tmp_path: Path, what: str) -> None:
    whole, killed = (World(tmp_path / name, worsening(), count=5, patience=2) for name in ("whole", "killed"))
    whole.train()
    with pytest.raises(CoordinatorKilled):
        killed.train(raising_at("before", what))
    killed.restart()
    killed.train()
    assert killed.outcome()["final"] == whole.outcome()["final"]


def compared(scores: dict[str, float], *, examples: int = 400) -> tuple[Comparison, ...]:
    """Clients with these scores of the federation's model, and all of them."""
    mean = sum(scores.values()) / len(scores)
    everybody = {"all": mean, **scores}
    return tuple(
        Comparison(client=name, examples=examples, alone=None, federated=score, centralised=None)
        for name, score in everybody.items()
    )


@pytest.mark.parametrize(
    ("scores", "examples", "lower", "left"),
    [
        ({"a": 0.9, "b": 0.9, "c": 0.6}, 400, False, "c is left behind: 60.0%"),
        ({"a": 0.9, "b": 0.9, "c": 0.6}, 8, False, ""),  # five right of eight, where six or seven are meant
        ({"a": 0.9, "b": 0.88, "c": 0.82}, 4000, False, ""),
        ({"a": 30.0, "b": 30.0, "c": 90.0}, 4000, True, "c is left behind: 90"),
        ({"a": 30.0, "b": 33.0, "c": 40.0}, 4000, True, ""),
        ({"a": 0.2}, 400, False, ""),
    ],
)
def test_a_client_far_below_all_others_is_named_unless_it_may_be_chance(
    scores: dict[str, float], examples: int, lower: bool, left: str
) -> None:
    found = " ".join(comparison_facts(compared(scores, examples=examples), lower_is_better=lower))
    assert left in found
    assert bool(found) == bool(left)
