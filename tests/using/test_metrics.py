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
from fedpeft.tasks.generated import exact_match, rouge_l
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


def asked(run: Path, rows: Rows, folder: Path, store: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Rows:
    """What `adapter predict` says of each row."""
    file = folder / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["adapter", "predict", str(run), "--file", str(file), "--store", str(store), *more]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def measured(
    run: Path, rows: Rows, folder: Path, store: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, float]:
    """What `adapter eval` says of all rows."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["adapter", "eval", str(run), "--data", str(file), "--json", "--store", str(store), *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_recall_is_that_of_the_vectors_that_predict_prints(
    classes: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(classes, kind="embeddings").make(tmp_path / "runs", seed=1, labels=(), convention="anchor+positive")
    texts = [f"{WORDS[i % 8]} {WORDS[(i + i // 8) % 8]}" for i in range(24)]
    others = [text if i % 2 else texts[i - 2] for i, text in enumerate(texts)]  # some of them their own anchor's words
    rows: Rows = [{"anchor": one, "positive": f"{other} please"} for one, other in zip(texts, others, strict=True)]
    said = measured(run, rows, tmp_path, classes.store, capsys)
    vectors = {
        name: np.array(
            [
                one["vector"]
                for one in asked(run, [{"text": row[name]} for row in rows], tmp_path, classes.store, capsys)
            ]
        )
        for name in ("anchor", "positive")
    }
    cosines = vectors["anchor"] @ vectors["positive"].T
    own, apart = cosines.diagonal(), cosines - 9 * np.eye(len(rows))
    assert said["cosine_own"] == pytest.approx(own.mean(), abs=1e-4)
    assert said["cosine_nearest_other"] == pytest.approx(apart.max(1).mean(), abs=1e-4)
    assert said["recall_at_1"] == pytest.approx((own > apart.max(1)).mean(), abs=1e-6)
    assert 0 < said["recall_at_1"] < 1


def test_a_preference_s_accuracy_and_margin_are_those_of_the_answers_that_predict_prints(
    language: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(language, kind="preference").make(
        tmp_path / "runs", seed=1, labels=(), convention="prompt+chosen+rejected"
    )
    rows: Rows = [
        {"prompt": text, "chosen": f" {WORDS[i % 8]}", "rejected": f" {WORDS[(i + 3) % 8]} late"}
        for i, text in enumerate(TEXTS)
    ]
    said = measured(run, rows, tmp_path, language.store, capsys)
    answers = asked(run, rows, tmp_path, language.store, capsys)
    margins = np.array([one["margin"] for one in answers])
    assert said["margin"] == pytest.approx(margins.mean(), rel=1e-3, abs=1e-5)
    assert said["accuracy"] == pytest.approx(np.mean([one["answer"] == "chosen" for one in answers]), abs=1e-6)
    assert said["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-3)
    assert 0 < said["accuracy"] < 1


def test_a_language_model_s_perplexity_and_answers_are_those_of_its_logits_and_of_predict(
    language: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    run = language.make(tmp_path / "runs", seed=1, labels=(), convention="prompt+completion")
    rows: Rows = [{"prompt": text, "completion": f" {WORDS[i % 8]} please"} for i, text in enumerate(TEXTS)]
    answers = asked(run, rows, tmp_path, language.store, capsys, "--max-tokens", "5")
    rows = [
        {**row, "completion": one["answer"]} if i % 2 and str(one["answer"]).strip() else row
        for i, (row, one) in enumerate(zip(rows, answers, strict=True))
    ]
    said = measured(run, rows, tmp_path, language.store, capsys, "--generate", "12", "--max-new-tokens", "5")
    same = [exact_match(str(row["completion"]), str(one["answer"])) for row, one in zip(rows, answers, strict=True)]
    close = [rouge_l(str(row["completion"]), str(one["answer"])) for row, one in zip(rows, answers, strict=True)]
    assert said["exact_match"] == pytest.approx(np.mean(same), abs=1e-6)
    assert said["rouge_l"] == pytest.approx(np.mean(close), abs=1e-6)
    assert 0 < said["exact_match"] < 1
    model = load_adapter(run, store=language.store)
    losses: list[float] = []
    for row in rows:
        first = model.tokenizer(str(row["prompt"]), add_special_tokens=False)["input_ids"]
        whole = model.tokenizer(f"{row['prompt']}{row['completion']}", add_special_tokens=False)["input_ids"]
        ids = [model.tokenizer.bos_token_id, *whole, model.tokenizer.eos_token_id]
        with torch.no_grad():
            shares = torch.log_softmax(model.torch_model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        losses += [-float(shares[i - 1, ids[i]]) for i in range(len(first) + 1, len(ids))]
    assert said["predictions"] == len(losses)
    assert said["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)
