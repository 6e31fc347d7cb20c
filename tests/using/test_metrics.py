"""One value of each metric: `adapter eval`, Python, and an outside library on what `adapter predict` says."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from fedpeft import load_adapter
from fedpeft.cli import main
from tests.using.conftest import Runs

pytestmark = pytest.mark.torch
WORDS = ("hello", "fox", "refund", "flight", "late", "great", "please", "quick")
TEXTS = [f"{WORDS[i % 8]} {WORDS[i * 3 % 8]} {WORDS[i * i % 8]}" for i in range(12)]
CLASSES = ("good", "so so", "bad")
TAGS = ("O", "B-x", "I-x")
Rows = list[dict[str, object]]


def of_classes(rows: Rows, answers: Sequence[str]) -> dict[str, float]:
    metrics = pytest.importorskip("sklearn.metrics")
    truth = [row["label"] for row in rows]
    f1 = metrics.f1_score(truth, answers, average="macro", labels=CLASSES, zero_division=0)
    return {"accuracy": metrics.accuracy_score(truth, answers), "f1_macro": f1}


def of_labels(rows: Rows, answers: Sequence[str]) -> dict[str, float]:
    metrics = pytest.importorskip("sklearn.metrics")
    truth = [[name in row["label"] for name in CLASSES] for row in rows]  # type: ignore[operator]
    found = [[name in answer.split(";") for name in CLASSES] for answer in answers]
    return {
        "accuracy": metrics.accuracy_score(truth, found),
        "f1_micro": metrics.f1_score(truth, found, average="micro", zero_division=0),
    }


def of_numbers(rows: Rows, answers: Sequence[str]) -> dict[str, float]:
    stats = pytest.importorskip("scipy.stats")
    return {"pearson": float(stats.pearsonr([row["label"] for row in rows], list(map(float, answers)))[0])}


def of_tags(rows: Rows, answers: Sequence[str]) -> dict[str, float]:
    seqeval = pytest.importorskip("seqeval.metrics")
    truth = [row["tags"] for row in rows]
    found = [[pair.rpartition("/")[2] for pair in answer.split()] for answer in answers]
    f1 = seqeval.f1_score(truth, found, zero_division=0)
    return {"accuracy": seqeval.accuracy_score(truth, found), "entity_f1": f1}


CASES: dict[str, tuple[tuple[str, ...], Rows, str, Callable[[Rows, Sequence[str]], dict[str, float]]]] = {
    "classify": (
        CLASSES, [{"text": text, "label": CLASSES[i % 3]} for i, text in enumerate(TEXTS)], "text+label", of_classes,
    ),
    "multi-label": (
        CLASSES,
        [{"text": text, "label": [CLASSES[i % 3], *CLASSES[: i % 2]]} for i, text in enumerate(TEXTS)],
        "text+label", of_labels,
    ),
    "regression": ((), [{"text": text, "label": i % 5} for i, text in enumerate(TEXTS)], "text+label", of_numbers),
    "token-classify": (
        TAGS,
        [
            {"words": text.split(), "tags": ["B-x", "I-x", "O"] if i % 2 else ["O", "B-x", "O"]}
            for i, text in enumerate(TEXTS)
        ],
        "words+tags", of_tags,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_metric_has_one_value_in_every_place_and_an_outside_library_has_it_too(
    kind: str, classes: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, rows, convention, outside = CASES[kind]
    run = replace(classes, kind=kind).make(tmp_path / "runs", seed=1, labels=labels, convention=convention)
    file, store = tmp_path / "rows.jsonl", ["--store", str(classes.store)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["adapter", "eval", str(run), "--data", str(file), "--json", *store]) == 0
    said = json.loads(capsys.readouterr().out)
    assert main(["adapter", "predict", str(run), "--file", str(file), *store]) == 0
    answers = [str(json.loads(line)["answer"]) for line in capsys.readouterr().out.splitlines()]
    expected = outside(rows, answers)
    assert {name: said[name] for name in expected} == pytest.approx(expected, abs=2e-3), kind
    assert np.isfinite(said["loss"])
    python = load_adapter(run, store=classes.store).evaluate(rows)
    assert python == pytest.approx({name: value for name, value in said.items() if name != "run"}, abs=1e-6)
