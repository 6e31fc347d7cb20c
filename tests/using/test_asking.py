"""`fedpeft adapter predict`, `chat` and `eval` on runs that are there."""

import io
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")
from fedpeft.cli import main
from tests.using.conftest import Runs

pytestmark = pytest.mark.torch
TEXTS = ("the flight was late", "great", "a quick refund please hello fox")


@pytest.fixture(scope="module")
def classifier(classes: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classes.make(tmp_path_factory.mktemp("runs"), seed=1)


@pytest.fixture(scope="module")
def talker(language: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.make(tmp_path_factory.mktemp("runs"), seed=1)


def test_texts_and_the_rows_of_a_file_and_of_standard_input_get_the_same_classes(
    classifier: Path, classes: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ["--store", str(classes.store)]
    assert main(["adapter", "predict", str(classifier), *TEXTS, "--probabilities", "--json", *store]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in listed] == list(TEXTS)
    for one in listed:
        shares = one["probabilities"]
        assert list(shares) == ["good", "so so", "bad"]
        assert math.isclose(sum(shares.values()), 1, abs_tol=1e-6)
        assert one["answer"] == max(shares, key=shares.get)
    (tmp_path / "notes.csv").write_text("note\n" + "\n".join(TEXTS) + "\n")
    file = ["--file", str(tmp_path / "notes.csv"), "--map", "text=note"]
    assert main(["adapter", "predict", str(classifier), *file, "--probabilities", *store]) == 0
    from_file = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert from_file == [
        {"row": n, "answer": one["answer"], "probabilities": one["probabilities"]} for n, one in enumerate(listed, 1)
    ]
    lines = [TEXTS[0], json.dumps({"text": TEXTS[1]}), "", TEXTS[2]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["adapter", "predict", str(classifier), "--file", "-", *store]) == 0
    from_input = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    assert from_input == [one["answer"] for one in listed]


def test_neither_texts_nor_a_file_is_a_mistake_of_usage(classifier: Path, classes: Runs) -> None:
    store = ["--store", str(classes.store)]
    assert main(["adapter", "predict", str(classifier), *store]) == 2
    assert main(["adapter", "predict", str(classifier), "a", "--file", "-", *store]) == 2
    assert main(["adapter", "eval", str(classifier), *store]) == 2


def test_a_language_model_answers_rows_as_it_was_trained(
    talker: Path, language: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        "hello",
        json.dumps({"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "so"}]}),
        json.dumps({"prompt": "hello"}),
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(asked)))
    arguments = ["adapter", "predict", str(talker), "--file", "-", "--max-tokens", "5", "--store", str(language.store)]
    assert main(arguments) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3
    assert answers[0]["answer"] == answers[1]["answer"] == answers[2]["answer"], (
        "a plain line is asked as trained, an answer is not read"
    )
    assert all(0 < one["tokens"] <= 5 for one in answers)


def test_a_chat_remembers_until_it_begins_anew(
    talker: Path, language: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nhello\n/new\nhello\n\nnever read\n"))
    assert main(["adapter", "chat", str(talker), "--max-tokens", "6", "--store", str(language.store)]) == 0
    out, said = capsys.readouterr()
    first, second, third = out.removesuffix("\n").rsplit("\n", 2) if out.count("\n") == 3 else _three(out)
    assert first == third
    assert first != second, "the second question has a conversation before it"
    assert "asked as messages" in said


def _three(out: str) -> tuple[str, str, str]:
    """Answers may hold line ends: the first and the third are equal, so they tell where they end."""
    for size in range(1, len(out) // 2):
        if out[size] == "\n" and out.endswith("\n" + out[:size] + "\n"):
            return out[:size], out[size + 1 : -size - 2], out[:size]
    raise AssertionError(f"no two equal answers in {out!r}")


def test_a_classifier_does_not_chat(classifier: Path, classes: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapter", "chat", str(classifier), "--store", str(classes.store)]) == 3
    assert "use `predict`" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classify", "causal-lm"])
def test_an_evaluation_says_the_loss_that_the_logits_have(
    kind: str, talker: Path, classifier: Path, language: Runs, classes: Runs, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from fedpeft.data import encode, load_records
    from fedpeft.tuning.evaluate import evaluate_whole
    from fedpeft_client.inference import TrainedModel
    from fedpeft_server.run.run_view import last_state, read_run

    run, runs = (classifier, classes) if kind == "classify" else (talker, language)
    rows = [
        {"text": text, "label": "bad"} if kind == "classify" else {"prompt": text, "completion": " yes"}
        for text in TEXTS
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in ([str(file)], ["--data", str(file)]):
        assert main(["adapter", "eval", str(run), *source, "--json", "--store", str(runs.store)]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["predictions"] >= 3
    view = read_run(run)
    model = TrainedModel.load(view.config(), last_state(view), base=runs.digest, store=runs.store)
    asked, task = model.answerer(), view.config().task
    examples = encode(load_records(str(file)), task, task.labels, asked.tokenizer)  # type: ignore[arg-type]
    plain = evaluate_whole(asked._model, examples, batch_size=2)
    assert math.isclose(said["loss"], plain.loss_sum / plain.examples, rel_tol=1e-5)
    assert said["accuracy"] == plain.correct / plain.examples
    assert (kind == "causal-lm") == ("perplexity" in said)
