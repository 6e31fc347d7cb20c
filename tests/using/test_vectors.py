"""One vector for a text, whoever computes it: fedpeft, its server, plain peft, sentence-transformers."""

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from fedpeft.base import ArtifactStore, load_tokenizer
from fedpeft.cli import main
from fedpeft.cli.serve import RunSource
from fedpeft.export.whole_model import export_base, probe_inputs
from fedpeft_client.inference import TrainedModel
from fedpeft_client.serving.engine import Embedded, Engine, Job
from fedpeft_client.serving.registry import AdapterRegistry
from fedpeft_server.run.run_view import last_state, read_run
from tests.using.conftest import Runs

pytestmark = [pytest.mark.torch, pytest.mark.e2e]
TEXTS = ["the quick brown fox", "a", "one text that is far longer than what the others are and is cut " * 4]


@pytest.fixture(scope="module")
def vectors(classes: Runs) -> Runs:
    return replace(classes, kind="embeddings")


@pytest.fixture(scope="module")
def run(vectors: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vectors.make(tmp_path_factory.mktemp("vectors"), seed=1, convention="anchor+positive", losses=(0.5, 0.4))


@pytest.fixture(scope="module")
def model(run: Path, vectors: Runs) -> TrainedModel:
    view = read_run(run)
    return TrainedModel.load(view.config(), last_state(view), base=vectors.digest, store=vectors.store)


@pytest.fixture(scope="module")
def expected(model: TrainedModel) -> np.ndarray:
    """Each text by itself, written out: nothing is padded."""
    found = []
    for text in TEXTS:
        inputs = model.tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            states = model.torch_model(input_ids=inputs["input_ids"]).last_hidden_state[0]
        found.append(torch.nn.functional.normalize(states.mean(0), dim=0).numpy())
    return np.stack(found)


def test_a_vector_is_the_same_in_a_batch_and_alone(model: TrainedModel, expected: np.ndarray) -> None:
    found = {row: values for row, values, _ in model.answerer().vectors([(text,) for text in TEXTS])}
    np.testing.assert_allclose([found[row] for row in range(len(TEXTS))], expected, atol=1e-5)


def test_the_server_gives_it_beside_another_adapter(
    run: Path, vectors: Runs, expected: np.ndarray, tmp_path: Path
) -> None:
    shelf = AdapterRegistry(vectors.store)
    other = vectors.make(tmp_path, seed=2, convention="anchor+positive")
    served = [shelf.prepare(RunSource(name, path))() for name, path in (("one", run), ("other", other))]
    assert served[0].batched is served[1].batched
    engine, found = Engine(shelf), dict[tuple[int, int], object]()
    done = []
    jobs = [
        Job(
            served=one, work=(text,), kind="embed", deadline_s=1e12,
            deliver=lambda outcome, place=(i, j): found.setdefault(place, outcome) if outcome else done.append(place),
        )
        for i, one in enumerate(served)
        for j, text in enumerate(TEXTS)
    ]  # fmt: skip
    engine.submit(jobs)
    for _ in range(6000):
        if len(done) == len(jobs):
            break
        time.sleep(0.01)
    engine.close()
    for j, vector in enumerate(expected):
        own, others = found[0, j], found[1, j]
        assert isinstance(own, Embedded)
        assert isinstance(others, Embedded)
        np.testing.assert_allclose(own.values, vector, atol=1e-4)
        assert np.abs(np.array(others.values) - vector).max() > 1e-2


def test_the_card_s_own_lines_give_it(model: TrainedModel, vectors: Runs, expected: np.ndarray, tmp_path: Path) -> None:
    """The code of README.md as it stands, with its two folders and the texts put in."""
    artifact = ArtifactStore(vectors.store).get(vectors.digest)
    tokenizer = load_tokenizer(artifact)
    export_base(artifact, tmp_path / "base", probe_inputs(tokenizer, seed=0))
    assert model.export(tmp_path / "adapter").peft_max_logit_difference < 1e-4  # type: ignore[operator]
    card = (tmp_path / "adapter/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("<this directory>", str(tmp_path / "adapter")).replace('["a text"]', repr(TEXTS))
    code = re.sub(r'from_pretrained\("(?!/)[^"]*"', f'from_pretrained("{tmp_path / "base"}"', code, count=1)
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 - what a reader of the card would type
    np.testing.assert_allclose(names["vectors"], expected, atol=1e-4)


def test_sentence_transformers_gives_it_from_the_whole_model(
    model: TrainedModel, expected: np.ndarray, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    model.export_merged(tmp_path / "whole")
    theirs = library.SentenceTransformer(str(tmp_path / "whole"), device="cpu")
    assert theirs.max_seq_length == 64
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=1e-4)


def test_predict_prints_vectors_of_texts_and_cosines_of_pairs(
    run: Path,
    vectors: Runs,
    expected: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ["--store", str(vectors.store)]
    assert main(["adapter", "predict", str(run), *store, "--json", *TEXTS]) == 0
    found = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose([one["vector"] for one in found], expected, atol=1e-4)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"anchor": TEXTS[0], "positive": TEXTS[1], "negative": TEXTS[2]}) + "\n")
    assert main(["adapter", "predict", str(run), *store, "--file", str(file)]) == 0
    close = json.loads(capsys.readouterr().out)["cosines"]
    np.testing.assert_allclose(close, (expected @ expected[0])[1:], atol=1e-4)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["adapter", "chat", str(run), *store]) != 0
    assert "model of vectors" in capsys.readouterr().err
