"""Every task through a short simulation under secure aggregation: its metrics, its adapter asked and measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import fedpeft
from fedpeft.cli import main
from fedpeft.tasks import TASKS
from fedpeft.testing.models import save_tiny, tiny_bert, tiny_llama

pytestmark = [pytest.mark.e2e, pytest.mark.torch]
Rows = list[dict[str, Any]]
COLORS, ANIMALS = ("red", "green", "blue"), ("cat", "dog", "bird")


def sentence(i: int) -> str:
    return f"the {COLORS[i % 3]} {ANIMALS[(i // 3) % 3]} {'runs' if i % 2 else 'sleeps'}"


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "classify": lambda i: {"text": sentence(i), "text_pair": sentence(i + i % 2), "label": ("same", "other")[i % 2]},
    "regression": lambda i: {"text": sentence(i), "text_pair": sentence(2 * i), "label": (i % 3) / 2},
    "multi-label": lambda i: {"text": sentence(i), "label": [COLORS[i % 3], *["runs"] * (i % 2)]},
    "token-classify": lambda i: {"words": sentence(i).split(), "tags": ["O", "O", "B-animal", "O"]},
    "causal-lm": lambda i: {"prompt": "what runs", "completion": f" {sentence(i)}"},
    "preference": lambda i: {"prompt": f"what {sentence(i)}", "chosen": f" {sentence(i)}", "rejected": " a b c"},
    "embeddings": lambda i: {"anchor": sentence(i), "positive": f"{sentence(i)} a", "negative": sentence(i + 1)},
}
ASKED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "classify": lambda one: one["answer"] in ("same", "other"),
    "regression": lambda one: float(one["answer"]) > -100,
    "multi-label": lambda one: set(filter(None, one["answer"].split(";"))) <= {*COLORS, "runs"},
    "token-classify": lambda one: all("/" in word for word in one["answer"].split()),
    "causal-lm": lambda one: one["tokens"] > 0,
    "preference": lambda one: (
        one["answer"] in ("chosen", "rejected") and (one["margin"] > 0) == (one["answer"] == "chosen")
    ),
    "embeddings": lambda one: len(one["cosines"]) == 2 and all(-1.001 < cosine < 1.001 for cosine in one["cosines"]),
}
"""What `predict` says of a row of the task."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(tiny_bert(layers=1), folder / "bert")
    save_tiny(tiny_llama(layers=1), folder / "llama")
    return folder


def test_every_task_is_here_or_has_a_file_of_its_own() -> None:
    assert {*ROWS, "seq2seq"} == set(TASKS), "seq2seq: tests/e2e/test_seq2seq.py"
    assert ROWS.keys() == ASKED.keys()


@pytest.mark.parametrize("kind", ROWS)
def test_a_task_is_federated_measured_asked_and_exported(
    kind: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, rows = TASKS[kind], [ROWS[kind](i) for i in range(36)]  # type: ignore[index]
    config = {
        "base": {"model": str(models / ("llama" if record.writes else "bert")), "quantize": "none"},
        "task": {"kind": kind, "max_length": 32, **({"generate": 4, "max_new_tokens": 3} if record.generates else {})},
        "adapter": {"lora": {"rank": 2}},
        "data": {"partition": {"by": "iid", "clients": 3}},
        "train": {"local_steps": 2, "batch_size": 6},
        "rounds": {"count": 1},
    }
    store = str(models / "store")
    result = fedpeft.simulate(config, rows, out=tmp_path / "runs", store=store)
    assert result.view.config().secagg.mode != "off"
    before, after = result.rounds
    assert None not in (before.loss, after.loss)
    known = {"loss", "accuracy"} & {*record.metrics} | {*after.metrics}
    assert record.best in known
    assert {*record.metrics} - {"loss", "accuracy"} <= {*after.metrics}
    assert (after.accuracy is not None) == record.accuracy
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    scores = fedpeft.load_adapter(result.path, store=store).evaluate(str(file))
    assert known <= scores.keys()
    assert ("accuracy" in scores) == record.accuracy
    capsys.readouterr()
    asked = ["adapter", "predict", str(result.path), "--file", str(file), "--max-tokens", "2", "--store", store]
    assert main(asked) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 6
    assert all(ASKED[kind](one) for one in answers), answers
