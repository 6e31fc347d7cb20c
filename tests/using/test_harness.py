"""`fedpeft adapter harness` against lm-eval's own model class, and the likelihoods beneath it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from fedpeft.cli import main
from fedpeft.errors import DataInvalid
from fedpeft.tasks.harness_tasks import expect_local_data, expect_metrics
from fedpeft_client.inference import Answerer, TrainedModel
from fedpeft_client.inference.likelihood import likelihoods
from tests.using.conftest import Runs

pytestmark = pytest.mark.torch
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["fox", "a quick hello", "so"]
doc_to_target: "{{{{answer}}}}"
"""
WORDS = """
task: own_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{want}}}}"
metric_list: [{{metric: exact_match}}]
"""
PERPLEXITY = """
task: own_perplexity
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""

LOCAL = "task: near\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"


@pytest.fixture(scope="module")
def talker(language: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.make(tmp_path_factory.mktemp("runs"), seed=1, convention="prompt+completion")


@pytest.fixture(scope="module")
def model(talker: Path, language: Runs) -> TrainedModel:
    from fedpeft.api.kept import trained_model

    return trained_model(talker, store=language.store)


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Path]:
    """A file of each kind, over eight rows."""
    data = tmp_path / "rows.jsonl"
    texts = ("hello", "a quick refund", "the flight was late", "great", "so so", "please", "fox hello", "the the")
    rows = [{"question": text, "answer": i % 3, "want": "hello"} for i, text in enumerate(texts)]
    data.write_text("\n".join(map(json.dumps, rows)))
    found = {}
    for name, text in {"choice": CHOICE, "words": WORDS, "perplexity": PERPLEXITY}.items():
        found[name] = tmp_path / f"{name}.yaml"
        found[name].write_text(text.format(data=data))
    return found


def pairs_of(sizes: tuple[tuple[int, int], ...], vocabulary: int) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    return [(draw.integers(0, vocabulary, a), draw.integers(0, vocabulary, b)) for a, b in sizes]


@pytest.mark.parametrize("padding", [True, False])
def test_a_likelihood_is_that_of_the_pair_alone(model: TrainedModel, padding: bool) -> None:
    net = model.torch_model
    size = int(net.config.vocab_size)  # type: ignore[union-attr, arg-type]
    pairs = pairs_of(((3, 2), (1, 1), (9, 4), (2, 5), (4, 0)), size)
    found = likelihoods(net, pairs, vocabulary=size, longest=None, padding=padding)
    for (context, continuation), one in zip(pairs, found, strict=True):
        ids = torch.from_numpy(np.concatenate([context, continuation]))[None]
        with torch.no_grad():
            logits = net(input_ids=ids).logits[0, len(context) - 1 : -1].double()
        told = torch.log_softmax(logits, -1)[torch.arange(len(continuation)), torch.from_numpy(continuation)]
        assert one.log_probability == pytest.approx(float(told.sum()), abs=1e-4)
        assert one.greedy == bool((logits.argmax(-1).numpy() == continuation).all())


def test_a_context_beyond_what_the_model_reads_loses_its_beginning(model: TrainedModel) -> None:
    net = model.torch_model
    size = int(net.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ((context, continuation),) = pairs_of(((12, 3),), size)
    (cut,) = likelihoods(net, [(context, continuation)], vocabulary=size, longest=8, padding=True)
    (own,) = likelihoods(net, [(context[-6:], continuation)], vocabulary=size, longest=None, padding=True)
    assert cut.log_probability == pytest.approx(own.log_probability, abs=1e-5)
    with pytest.raises(DataInvalid, match="at most 2 tokens"):
        likelihoods(net, [(context, continuation)], vocabulary=size, longest=2, padding=True)


def test_without_the_package_the_extra_is_named(
    talker: Path, language: Runs, tasks: dict[str, Path], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("fedpeft.cli.harness.find_spec", lambda name: None)
    arguments = ["adapter", "harness", str(talker), "--tasks", str(tasks["choice"]), "--store", str(language.store)]
    assert main(arguments) != 0
    assert "pip install 'fedpeft[harness]'" in capsys.readouterr().err


def measured(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], float]:
    assert main(["adapter", "harness", *arguments, "--json"]) == 0, capsys.readouterr().err
    results = json.loads(capsys.readouterr().out)["results"]
    return {(one["task"], one["metric"]): one["value"] for one in results}


def test_every_kind_of_task_has_the_values_of_lm_evals_own_model(
    talker: Path, model: TrainedModel, language: Runs, tasks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = [word for path in tasks.values() for word in ("--tasks", str(path))]
    ours = measured([str(talker), *files, "--store", str(language.store)], capsys)
    assert {name for name, _ in ours} == {"own_choice", "own_words", "own_perplexity"}
    for bos, names in ((True, ("choice", "words")), (False, ("perplexity",))):  # of whole texts HFLM writes BOS twice
        theirs: Any = HFLM(pretrained=model.torch_model, tokenizer=model.tokenizer, batch_size=1, add_bos_token=bos)
        loaded = TaskManager(include_defaults=False).load([str(tasks[name]) for name in names])
        expected = evaluate(theirs, loaded, bootstrap_iters=0, log_samples=False)["results"]
        for (task, metric), value in ours.items():
            if task in expected:
                assert value == pytest.approx(expected[task][f"{metric},none"], rel=1e-4), (task, metric)


def test_a_run_of_conversations_is_asked_through_its_chat_template(
    language: Runs, tmp_path: Path, tasks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    from fedpeft.api.kept import trained_model
    from fedpeft.tasks import Convention
    from fedpeft_client.inference.harness import HarnessModel

    run = language.make(tmp_path / "runs", seed=1, convention="messages")
    asked: Answerer = trained_model(run, store=language.store).answerer(Convention.MESSAGES)
    chatting = HarnessModel(asked)
    assert chatting.chats
    text = chatting.apply_chat_template([{"role": "user", "content": "hello"}])
    assert chatting.tok_encode(text) == asked.tokens_of({"text": "hello"}).tolist()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: far\ndataset_path: some/dataset\ntest_split: test\n", "no hub is asked"),
        ("nothing: here\n", "lm-eval said"),
        ("- [", "lm-eval said"),
        (f"{LOCAL}dataset_kwargs: {{data_files: {{test: [a.jsonl, 'https://h/b.jsonl']}}}}\n", "'https://h/b.jsonl'"),
        (f"{LOCAL}dataset_kwargs: {{data_files: 'zip://a.jsonl::hf://b.zip'}}\n", "no request is sent"),
        ("group: g\ntask: [{task: t, dataset_path: json, dataset_kwargs: {data_dir: 's3://b'}}]\n", "'s3://b'"),
        (
            f"{LOCAL}metric_list: [{{metric: acc}}, {{metric: acuracy, aggregation: mean}}]\n",
            "found 'acuracy'; one of acc,",
        ),
    ],
)
def test_a_task_of_a_hub_or_none_at_all_is_refused(
    talker: Path, language: Runs, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "task.yaml").write_text(text)
    arguments = [str(talker), "--tasks", str(tmp_path / "task.yaml"), "--store", str(language.store)]
    assert main(["adapter", "harness", *arguments]) == 3
    assert said in capsys.readouterr().err


def test_addresses_and_unknown_metrics_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """Also where lm-eval is not installed."""
    for value in ("http://h/a", {"test": "ftp://h/a"}, {"test": ["a", "s3://h/a"]}):
        for config in ({"dataset_kwargs": {"data_files": value}}, {"task": [{"data_files": value}]}):
            with pytest.raises(DataInvalid, match="no request is sent"):
                expect_local_data(config, file=tmp_path)
    expect_local_data({"doc_to_text": "see http://h/a", "dataset_kwargs": {"data_files": "a.jsonl"}}, file=tmp_path)
    with pytest.raises(DataInvalid, match=r"found 'f2'; one of acc, f1\."):
        expect_metrics({"task": [{"metric_list": [{"metric": "f2"}]}]}, ("f1", "acc"), file=tmp_path)
    own: list[dict[str, object]] = [
        {"metric": "/a/utils.mine"},
        {"metric": "bleurt", "hf_evaluate": True},
        {"metric": "acc"},
    ]
    expect_metrics({"metric_list": own}, ("acc",), file=tmp_path)
    expect_metrics({"metric_list": [{"metric": "mine"}], "process_results": "/a/utils.f"}, ("acc",), file=tmp_path)


def test_a_classifier_is_refused(
    classes: Runs, tmp_path: Path, tasks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    run = classes.make(tmp_path / "runs", seed=1)
    arguments = [str(run), "--tasks", str(tasks["choice"]), "--store", str(classes.store)]
    assert main(["adapter", "harness", *arguments]) == 3
    assert "adapter eval" in capsys.readouterr().err
