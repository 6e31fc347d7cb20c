"""Each task asked in every way: what answers is what transformers and peft make of the exported folder alone.

With ``test_exported`` and ``test_kept`` a table: rows in ``rows.ROWS``, columns are the tests. A cell works, or is
refused with the reason and what to do. `make test` draws a tenth of the cells.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import fedpeft
from fedpeft.cli import main
from fedpeft.errors import DataInvalid
from tests.using.every_task.plain import TOKENS, Plain, by_readme
from tests.using.every_task.rows import ROWS, Made

pytestmark = [pytest.mark.torch, pytest.mark.e2e]
cell = pytest.mark.drawn(2)
every_row = pytest.mark.parametrize("name", ROWS)
Given = Callable[[str], Made]
Capture = pytest.CaptureFixture[str]
WRITES = ("causal-lm", "seq2seq", "preference")


@pytest.fixture(scope="module")
def plain(made: Given) -> Callable[[str], Plain]:
    """A row's final adapter as its README.md loads it."""

    @cache
    def of(name: str) -> Plain:
        one = made(name)
        return Plain(*by_readme(one.final, one.base), one.row.kind, one.row.longest)

    return of


def close(said: dict[str, Any], expected: dict[str, Any]) -> None:
    """What a command said of a row, beside what it should have."""
    for name, value in expected.items():
        if isinstance(value, float | list | dict):
            found = float(said[name]) if isinstance(value, float) else said[name]
            assert found == pytest.approx(value, abs=2e-3), name
        else:
            assert said[name].strip() == value.strip(), name


@cell
@every_row
def test_predict(name: str, made: Given, plain: Callable[[str], Plain], capsys: Capture) -> None:
    one = made(name)
    line = ["adapter", "predict", one.run, "--file", one.file, "--probabilities", "--max-tokens", TOKENS]
    capsys.readouterr()
    assert main([*map(str, line), "--store", str(one.store)]) == 0
    answers = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    expected = [plain(name).answer(row) for row in one.asked]
    assert len(answers) == len(expected)
    for said, wanted in zip(answers, expected, strict=True):
        close(said, wanted)
    assert len({json.dumps(answer) for answer in expected}) > 1, "a model that says one thing compares nothing"


@cell
@every_row
def test_eval(name: str, made: Given, plain: Callable[[str], Plain], capsys: Capture) -> None:
    one = made(name)
    capsys.readouterr()
    line = ["adapter", "eval", str(one.run), "--data", str(one.file), "--store", str(one.store), "--json"]
    assert main(line) == 0
    said = json.loads(capsys.readouterr().out)
    if one.row.kind == "embeddings":
        cosines = [plain(name).answer(row)["cosines"][0] for row in one.asked]
        assert said["cosine_own"] == pytest.approx(sum(cosines) / len(cosines), abs=2e-3)
        return
    losses = [plain(name).loss(row) for row in one.asked]
    assert said["predictions"] == sum(count for _, count in losses)
    assert said["loss"] == pytest.approx(sum(loss for loss, _ in losses) / said["predictions"], rel=1e-3)


@cell
@every_row
def test_python(name: str, made: Given, plain: Callable[[str], Plain]) -> None:
    one = made(name)
    adapter = fedpeft.load_adapter(one.final, store=one.store)
    scores = adapter.evaluate(one.asked)
    assert scores == pytest.approx(fedpeft.load_adapter(one.run, store=one.store).evaluate(str(one.file)))
    texts, rows = asked_as_texts(one)
    if one.row.kind == "embeddings":
        with pytest.raises(DataInvalid, match="adapter predict"):
            adapter.predict(texts)
        return
    for answer, row in zip(adapter.predict(texts), rows, strict=True):
        close({"answer": answer}, {"answer": plain(name).answer(row, tokens=64)["answer"]})


@cell
@every_row
def test_serve(name: str, made: Given, plain: Callable[[str], Plain], tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    from tests.using.test_serve import ended, started

    one, kind = made(name), ROWS[name].kind
    server = started([f"m={one.run}"], one.store)
    with ended(server), httpx.Client(base_url=server.url, timeout=60) as client:
        texts, rows = asked_as_texts(one)
        classes = [{key: row[key] for key in ("text", "text_pair", "words") if key in row} for row in rows]
        classified = client.post("/classify", json={"model": "m", "input": classes if all(classes) else texts})
        body = {"model": "m", "prompt": texts, "max_tokens": TOKENS}
        written = client.post("/v1/completions", json=body)
        vectors = client.post("/v1/embeddings", json={"model": "m", "input": texts})
        if kind in WRITES:
            assert refused(classified) == "language model"
            if is_conversation(one.asked[0]):
                turns = [{"role": "user", "content": text} for text in texts]
                posted = [
                    client.post("/v1/chat/completions", json={"model": "m", "messages": [turn], "max_tokens": TOKENS})
                    for turn in turns
                ]
                found = [answer.json()["choices"][0]["message"]["content"] for answer in posted]
            else:
                found = [choice["text"] for choice in written.json()["choices"]]
            for said, row in zip(found, rows, strict=True):
                close({"answer": said}, {"answer": plain(name).answer(row)["answer"]})
        elif kind == "embeddings":
            assert refused(classified) == "vectors"
            assert refused(written) == "vectors"
            found = [entry["embedding"] for entry in vectors.json()["data"]]
            for said, text in zip(found, texts, strict=True):
                assert said == pytest.approx(plain(name).vector(text).tolist(), abs=1e-3)
        else:
            assert refused(written) == "classifies"
            for said, row in zip(classified.json()["data"], rows, strict=True):
                close(as_predicted(said, kind), plain(name).answer(row))


def refused(answer: Any) -> str:
    """Which of the reasons a 400 gives."""
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    (reason,) = (
        one for one in ("language model", "vectors", "classifies") if f" {one}" in message.partition("found")[2]
    )
    return reason


def as_predicted(said: dict[str, Any], kind: str) -> dict[str, Any]:
    """An entry of /classify, as `adapter predict` says it."""
    if kind == "regression":
        return {"answer": said["value"]}
    if kind == "token-classify":
        return {"answer": " ".join(f"{word}/{tag}" for word, tag in zip(said["words"], said["tags"], strict=True))}
    answer = said["label"] if kind == "classify" else ";".join(said["labels"])
    return {"answer": answer, "probabilities": dict(zip(said["classes"], said["probs"], strict=True))}


def is_conversation(row: dict[str, Any]) -> bool:
    """Whether it holds messages."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def asked_as_texts(one: Made) -> tuple[list[str], list[dict[str, Any]]]:
    """The examples as bare texts, and the rows that these texts ask for."""
    texts, rows = [], []
    for row in one.asked:
        if is_conversation(row):
            texts.append((row.get("messages") or row["prompt"])[0]["content"])
        elif "words" in row:
            texts.append(" ".join(row["words"]))
        elif "text_pair" in row:
            texts.append(f"{row['text']}\t{row['text_pair']}")
        else:
            texts.append(
                next(row[name] for name in ("text", "prompt", "instruction", "source", "anchor") if name in row)
            )
        rows.append(
            {**row, "input": ""} if "instruction" in row else {"prompt": row["prompt"]} if "prompt" in row else row
        )
    return texts, rows
