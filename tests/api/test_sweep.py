"""``fedpeft.sweep``: what is varied is what runs, a sweep goes on where it was, and never as another one."""

from dataclasses import replace
from pathlib import Path

import pytest

import fedpeft
from fedpeft.api.progress import NoProgress
from fedpeft.api.sweep import _measured
from fedpeft.api.sweep_space import Range, Space, space_of
from fedpeft.cli import main
from fedpeft.errors import ConfigInvalid, ResourceMissing
from fedpeft.round.events import Event, EventKind
from fedpeft_server.run.verdict import kept_row
from tests.api.conftest import birds, small


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("1e-4..0.1", Range(1e-4, 0.1)),
        ("log:1e-4..0.1", Range(1e-4, 0.1, log=True)),
        ("2..16", Range(2, 16)),
        ("-1.5..2", Range(-1.5, 2)),
        ("4,8,16", (4, 8, 16)),
        ("adamw, sgd", ("adamw", "sgd")),
        ("true,false", (True, False)),
    ],
)
def test_a_space_is_a_range_or_values(text: str, space: object) -> None:
    assert space_of(text) == space
    assert [type(one) for one in getattr(space, "__iter__", list)()] == [
        type(one) for one in getattr(space_of(text), "__iter__", list)()
    ]


@pytest.mark.parametrize("text", ["", "4", "a,", "2..1", "1..1", "log:0..1", "a..b", "1..2..3", "..", "1..inf"])
def test_a_space_without_two_things_to_choose_from_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        space_of(text)


def test_a_key_or_an_end_that_run_toml_does_not_take_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    config = {"base": {"model": "m"}, "task": {"kind": "classify"}}
    refused: dict[str, dict[str, Space]] = {
        "learning_rat": {"train.learning_rat": (0.1, 0.2)},
        "local_steps": {"train.local_steps": Range(-1, 4)},
        "held-out examples as they are, found run.seed": {"run.seed": (1, 2)},
        "as they are, found data.holdout": {"data.holdout": (0.2, 0.3)},
    }
    for said, vary in {**refused, "a key to vary": {}}.items():
        with pytest.raises(ConfigInvalid, match=said):
            fedpeft.sweep(config, birds(), vary=vary, out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_vary_without_a_key_is_a_usage_error() -> None:
    assert main(["sweep", "run.toml", "--vary", "4,8"]) == 2


class CutShort(NoProgress):
    """Ctrl-C after the first round."""

    def observe(self, event: Event) -> None:
        if event.kind is EventKind.ROUND_STARTED and event.round_id == 2:
            raise KeyboardInterrupt


@pytest.mark.torch
@pytest.mark.e2e
def test_a_sweep_that_was_cut_short_goes_on_with_its_trial_and_finds_the_best(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    config, vary = small(toys), {"train.learning_rate": (1e-9, 0.02)}
    given = {"vary": vary, "out": tmp_path / "sweep", "store": toys / "store"}
    with pytest.raises(KeyboardInterrupt):
        fedpeft.sweep(config, birds(), trials=1, progress=CutShort(), **given)  # type: ignore[arg-type]
    (begun,) = (tmp_path / "sweep" / "runs").iterdir()
    first = fedpeft.sweep(config, birds(), trials=1, **given)  # type: ignore[arg-type]
    assert [trial.run for trial in first.trials] == [begun]
    assert fedpeft.open_run(begun).state == "finished"
    found = fedpeft.sweep(config, birds(), trials=3, **given)  # type: ignore[arg-type]
    assert found.trials[0] == first.trials[0]
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    for trial in found.trials:
        result = fedpeft.open_run(trial.run or "")
        assert result.view.config().train.learning_rate == trial.settings["train.learning_rate"]
        row = kept_row(result.rounds, result.view.config().rounds)
        assert row is not None
        assert trial.value == row.loss
    assert found.best is not None
    assert found.best.value == min(trial.value for trial in found.trials if trial.value is not None)
    assert found.result() == fedpeft.open_run(found.best.run or "")
    assert not (tmp_path / "home").exists(), "bases are in the store that was given, in a resumed trial, too"
    with pytest.raises(ConfigInvalid, match="another metric"):
        fedpeft.sweep(config, birds(), trials=4, metric="accuracy", maximise=False, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigInvalid, match="another data"):
        fedpeft.sweep(config, birds(59), trials=4, **given)  # type: ignore[arg-type]


@pytest.mark.torch
def test_a_trials_value_is_of_the_state_that_its_run_keeps(finished: fedpeft.Result) -> None:
    """The last one unless an earlier one is better by a margin: never of a state that nobody can have."""
    for losses, value in {(1.0, 0.6, 0.605): 0.605, (1.0, 0.5, 0.6): 0.5, (1.0, 0.8, 0.6): 0.6}.items():
        rows = tuple(replace(row, loss=loss) for row, loss in zip(finished.rounds, losses, strict=True))
        assert _measured(fedpeft.Result(replace(finished.view, rounds=rows)), "loss") == value


@pytest.mark.torch
def test_a_trial_that_cannot_run_is_over_and_not_handed_out_again(toys: Path, tmp_path: Path) -> None:
    """What no setting would mend ends the sweep, and its trial with it."""
    given = {"vary": {"train.local_steps": (1, 2)}, "out": tmp_path / "sweep", "store": tmp_path / "a-file"}
    (tmp_path / "a-file").touch()
    with pytest.raises(ResourceMissing, match="folder"):
        fedpeft.sweep(small(toys), birds(), trials=1, **given)  # type: ignore[arg-type]
    found = fedpeft.sweep(small(toys), birds(), trials=1, **given)  # type: ignore[arg-type]
    assert [trial.state for trial in found.trials] == ["failed"]


@pytest.mark.torch
@pytest.mark.e2e
def test_a_sweep_in_which_nothing_works_ends_with_the_reason(toys: Path, tmp_path: Path) -> None:
    """A metric that no run measures is not among what is varied."""
    config = small(toys, count=1)
    with pytest.raises(ConfigInvalid, match="measures bleu, found loss, accuracy"):
        fedpeft.sweep(
            config,
            birds(),
            vary={"train.local_steps": (1, 2)},
            trials=9,
            metric="bleu",
            out=tmp_path / "sweep",
            store=toys / "store",
        )
    assert len(list((tmp_path / "sweep" / "runs").iterdir())) == 3


def test_without_optuna_a_sweep_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ResourceMissing, match=r"fedpeft\[sweep\]"):
        fedpeft.sweep({}, birds(), vary={"train.local_steps": (1, 2)}, out=tmp_path / "sweep")
