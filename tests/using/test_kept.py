"""Which state of a run every command uses: the one that adapters/final holds, never another."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from fedpeft.adapter import AdapterState
from fedpeft.cli import main
from tests.using.conftest import Runs

pytestmark = pytest.mark.torch
ROWS = [
    {"text": "the flight was late", "label": "bad"},
    {"text": "great", "label": "good"},
    {"text": "a quick refund please", "label": "so so"},
    {"text": "hello fox", "label": "bad"},
]
KEPT = {"start": (0.2, 0.5, 0.5), "first": (0.5, 0.2, 0.5), "last": (0.5, 0.4, 0.2)}
"""Which state is the best -> the losses in the rows of two rounds and an evaluation."""

Ask = Callable[[Path, Runs, Path, pytest.CaptureFixture[str]], float]
"""A run's loss on ROWS as one way of using it has it: (run, its base, the rows' file, what is printed)."""


def by_eval(run: Path, runs: Runs, rows: Path, printed: pytest.CaptureFixture[str]) -> float:
    assert main(["adapter", "eval", str(run), str(rows), "--json", "--store", str(runs.store)]) == 0
    return float(json.loads(printed.readouterr().out)["loss"])


def by_predict(run: Path, runs: Runs, rows: Path, printed: pytest.CaptureFixture[str]) -> float:
    asked = ["adapter", "predict", str(run), "--file", str(rows), "--probabilities", "--store", str(runs.store)]
    assert main(asked) == 0
    answers = [json.loads(line)["probabilities"] for line in printed.readouterr().out.splitlines()]
    return float(np.mean([-np.log(one[row["label"]]) for one, row in zip(answers, ROWS, strict=True)]))


def by_export(run: Path, runs: Runs, rows: Path, printed: pytest.CaptureFixture[str]) -> float:
    from fedpeft.data import load_records
    from fedpeft_client.inference import ReceivedModel

    assert main(["adapter", "export", str(run), "--out", str(rows.parent / "out"), "--store", str(runs.store)]) == 0
    model = ReceivedModel.load(rows.parent / "out", runs.store)
    return model.metrics(model.evaluate(load_records(str(rows))))["loss"]


def by_hub(run: Path, runs: Runs, rows: Path, printed: pytest.CaptureFixture[str]) -> float:
    out = ["--out", str(rows.parent / "hub"), "--store", str(runs.store)]
    assert main(["adapter", "hub", str(run), "--data", str(rows), "--tries", "3", *out]) == 0
    return float(printed.readouterr().out.split("alone: loss ")[1].split(")")[0])


def by_serve(run: Path, runs: Runs, rows: Path, printed: pytest.CaptureFixture[str]) -> float:
    from fedpeft.cli.serve import RunSource

    return loss_of(RunSource("m", run, runs.store).read().state, run, runs, rows)


def from_python(run: Path, runs: Runs, rows: Path, printed: pytest.CaptureFixture[str]) -> float:
    import fedpeft

    return fedpeft.load_adapter(run, store=runs.store).evaluate(str(rows))["loss"]


def loss_of(state: AdapterState, run: Path, runs: Runs, rows: Path) -> float:
    """Computed from the logits, beside every command."""
    from fedpeft_client.inference import TrainedModel
    from fedpeft_server.run.run_view import read_run

    asked = TrainedModel.load(read_run(run).config(), state, base=runs.digest, store=runs.store).answerer()
    told = asked.classify([row["text"] for row in ROWS])
    return float(np.mean([-np.log(one.probabilities[row["label"]]) for one, row in zip(told, ROWS, strict=True)]))


@pytest.fixture(scope="module")
def three(classes: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run for each state that may be kept; the same states in all."""
    folder = tmp_path_factory.mktemp("kept")
    return {
        name: classes.make(folder, seed=3, losses=losses, moves_frozen=False, count=2) for name, losses in KEPT.items()
    }


@pytest.fixture(scope="module")
def expected(three: dict[str, Path], classes: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The loss of each of the three states, read from the checkpoints."""
    from fedpeft.adapter import AdapterSpec
    from fedpeft.base import ArtifactStore
    from fedpeft.round.plan import learning_plan
    from fedpeft_client.training.model_pool import ModelPool
    from fedpeft_server.run.run_view import read_run

    run, rows = three["last"], tmp_path_factory.mktemp("rows") / "rows.jsonl"
    spec = AdapterSpec.from_json((run / "adapter.json").read_text())
    plan = learning_plan(read_run(run).config(), run_id="", base=classes.digest, adapter_spec=spec.digest)
    states = {"start": ModelPool(ArtifactStore(classes.store)).initial_state(plan)}
    for name, number in (("first", 1), ("last", 2)):
        content = (run / "checkpoints" / f"r{number:04d}" / "global.safetensors").read_bytes()
        states[name] = AdapterState.from_safetensors(spec, content)
    found = {name: loss_of(state, run, classes, rows) for name, state in states.items()}
    assert len({round(loss, 3) for loss in found.values()}) == 3, "three states that can be told apart"
    return found


@pytest.mark.parametrize(
    "ask", [by_eval, by_predict, by_export, by_hub, by_serve, from_python], ids=lambda ask: str(ask.__name__)
)
def test_every_way_of_using_a_run_takes_the_state_that_it_kept(
    ask: Ask, three: dict[str, Path], expected: dict[str, float], classes: Runs, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, run in three.items():
        (tmp_path / name).mkdir()
        rows = tmp_path / name / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        assert ask(run, classes, rows, capsys) == pytest.approx(expected[name], abs=2e-4), name


def test_no_command_reads_the_last_state_itself() -> None:
    """Whoever wants a run's adapter asks ``fedpeft.api.kept``."""
    root = Path(__file__).resolve().parents[2]
    for folder in ("fedpeft", "clients", "simulations"):
        for file in (root / folder).rglob("*.py"):
            words = file.read_text(encoding="utf-8")
            assert "last_state" not in words, file
            assert "kept_state" not in words or file.name == "kept.py", file


def test_merged_adapters_are_measured_in_every_metric_of_their_task(
    classes: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    store, folders = ["--store", str(classes.store)], []
    for seed in (1, 2):
        run = classes.make(tmp_path / "runs", seed=seed)
        folders.append(str(tmp_path / f"out{seed}"))
        assert main(["adapter", "export", str(run), "--out", folders[-1], *store]) == 0
    merged = str(tmp_path / "merged")
    capsys.readouterr()
    asked = ["adapter", "merge", *folders, "--rule", "ties", "--data", str(rows), "--out", merged, "--json", *store]
    assert main(asked) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert list(measured) == [*folders, merged]
    for scores in measured.values():
        assert {"loss", "accuracy", "f1_macro"} <= scores.keys()
    assert len({scores["loss"] for scores in measured.values()}) == 3
