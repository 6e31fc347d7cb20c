"""A fetched adapter answers as its run does: every task, every way to write its examples, texts of any length.

Both are asked the same rows through the same command's code; what differs is where the task's settings come from.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from fedpeft.api.kept import trained_model
from fedpeft.cli.asking import _answered
from fedpeft.errors import DataInvalid, IntegrityFailed
from fedpeft.export.received import read_received
from fedpeft.tasks import TASKS, Convention
from fedpeft_client.inference import ReceivedModel, Sampling
from tests.using.conftest import Runs

pytestmark = pytest.mark.torch
LONG = "the quick brown fox jumps over a lazy dog " * 12
HOW = Sampling(max_tokens=4)
TEXTS: list[dict[str, Any]] = [{"text": "the quick fox"}, {"text": LONG}]
PAIRS: list[dict[str, Any]] = [{"text": "one fox", "text_pair": "a dog"}, {"text": LONG, "text_pair": LONG[::-1]}]
ASKED: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("classify", "text+label"): TEXTS,
    ("classify", "text+text_pair+label"): PAIRS,
    ("multi-label", "text+text_pair+label"): PAIRS,
    ("regression", "text+label"): TEXTS,
    ("regression", "text+text_pair+label"): PAIRS,
    ("token-classify", "words+tags"): [{"words": ["a", "fox"]}, {"words": LONG.split()}],
    ("embeddings", "anchor+positive"): [*TEXTS, {"anchor": "a fox", "positive": LONG}],
    ("causal-lm", "messages"): [{"text": "a fox"}],
    ("causal-lm", "prompt+completion"): [{"prompt": "a fox"}],
    ("causal-lm", "instruction/input/output"): [{"instruction": "a fox"}, {"text": "a fox"}],
    ("causal-lm", "text"): [{"text": "a fox"}],
    ("preference", "prompt+chosen+rejected"): [{"prompt": "a fox", "chosen": " runs", "rejected": " is a dog"}],
}


def test_every_task_of_one_stack_is_asked() -> None:
    assert {kind for kind, _ in ASKED} == {*TASKS} - {"seq2seq"}


@pytest.mark.parametrize(("kind", "convention"), ASKED)
def test_a_fetched_adapter_answers_as_its_run(
    kind: str, convention: str, classes: Runs, language: Runs, tmp_path: Path
) -> None:
    runs = replace(language if TASKS[kind].writes else classes, kind=kind)
    labels = {"token-classify": ("O", "B-X")}.get(kind, ("good", "so so", "bad"))
    if kind == "preference":
        labels = ()
    run = runs.make(tmp_path, seed=3, labels=labels, convention=convention, methods="lora = {rank = 2}")
    model, known = trained_model(run, store=runs.store), Convention(convention)
    model.export(tmp_path / "out", convention=convention)
    fetched = ReceivedModel.load(tmp_path / "out", runs.store)
    assert fetched.task == model.task
    rows = ASKED[kind, convention]
    ours, theirs = (
        _answered(asked, HOW, rows, probabilities=True) for asked in (model.answerer(known), fetched.answerer())
    )
    assert [one["answer"] for one in theirs] == [one["answer"] for one in ours]
    for one, other in zip(ours, theirs, strict=True):
        for name in ("probabilities", "margin", "tokens"):
            assert other.get(name) == pytest.approx(one.get(name), abs=1e-5)


@pytest.mark.parametrize(("positions", "cut_at"), [(None, 900), (2048, 900), (512, 512)])
def test_a_text_is_cut_where_the_examples_were_also_beyond_512_tokens(
    positions: int | None, cut_at: int, classes: Runs, tmp_path: Path
) -> None:
    run = classes.make(tmp_path, seed=3, convention="text+label", methods="lora = {rank = 2}")
    trained_model(run, store=classes.store).export(tmp_path / "out", convention="text+label")
    known = ReceivedModel.load(tmp_path / "out", classes.store)
    about = known._about
    assert about.task is not None
    about = replace(about, task=about.task.model_copy(update={"max_length": 900}))
    fetched = ReceivedModel(known._model, known._tokenizer, about, positions, known._artifact)
    assert fetched.task.max_length == cut_at
    undescribed = ReceivedModel(known._model, known._tokenizer, replace(about, task=None), positions, known._artifact)
    assert undescribed.task.max_length == 512


def test_a_pair_is_no_text_with_a_tab_in_it(classes: Runs, tmp_path: Path) -> None:
    """Where nothing says what the examples were (a deployed run), only what comes as two texts is a pair."""
    run = classes.make(tmp_path, seed=3, convention="text+label", methods="lora = {rank = 2}")
    model = trained_model(run, store=classes.store)
    unknown, single = model.answerer(None), model.answerer(Convention.TEXT_LABEL)
    paired = model.answerer(Convention.TEXT_PAIR_LABEL)
    pair = ("a fox", "the dog")
    tab = "a fox\tthe dog"
    as_pairs = [paired.classify([pair]), paired.classify([tab]), unknown.classify([pair])]
    as_texts = [single.classify([tab]), unknown.classify([tab])]
    for found in (as_pairs, as_texts):
        assert {tuple(one.probabilities.values()) for (one,) in found} == {tuple(found[0][0].probabilities.values())}
    assert as_pairs[0] != as_texts[0]
    with pytest.raises(DataInvalid, match="found a pair"):
        single.classify([pair])
    with pytest.raises(DataInvalid, match="found one"):
        paired.classify(["a fox"])


def test_unknown_columns_are_refused(classes: Runs, tmp_path: Path) -> None:
    run = classes.make(tmp_path, seed=3, methods="lora = {rank = 2}")
    trained_model(run, store=classes.store).export(tmp_path / "out", convention="text+label")
    file = tmp_path / "out/inspect.json"
    content = json.loads(file.read_text())
    content["task"]["convention"] = "question+shrug"
    file.write_text(json.dumps(content))
    with pytest.raises(IntegrityFailed, match="columns that fedpeft knows"):
        read_received(tmp_path / "out")
