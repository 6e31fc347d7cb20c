"""`fedpeft adapter serve` in a process of its own, asked over HTTP: answers, streams, reloads, limits, its end."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Event

import numpy as np
import pytest

pytest.importorskip("torch")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
from fedpeft.cli.serve import RunSource  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.fork_server import ForkedProcess  # noqa: E402
from fedpeft.tasks import Convention  # noqa: E402
from fedpeft_client.inference import Sampling, TrainedModel  # noqa: E402
from fedpeft_client.inference.outputs import question_of  # noqa: E402
from fedpeft_client.serving.engine import Engine, Job, Question  # noqa: E402
from fedpeft_client.serving.registry import AdapterRegistry  # noqa: E402
from fedpeft_client.serving.requests import RequestRefused, classify_of  # noqa: E402
from fedpeft_client.serving.server import serve  # noqa: E402
from fedpeft_server.run.run_view import last_state, read_run  # noqa: E402
from tests.forked_commands import start_command  # noqa: E402
from tests.using.conftest import Runs, commit  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.e2e]
COUNT = 8
TURNS = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def talkers(language: Runs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight adapters of several ranks and targets on one base, and one of another kind."""
    folder = tmp_path_factory.mktemp("talkers")
    kinds = [
        'lora = {rank = 4, targets = ["q", "v"]}',
        'lora = {rank = 2, targets = ["o", "up"]}',
        "adalora = {rank = 3, target_rank = 2}",
    ]
    made = [language.make(folder, seed=n, methods=kinds[n % 3]) for n in range(COUNT)]
    return [*made, language.make(folder, seed=99, methods="ia3 = {}")]


@pytest.fixture(scope="module")
def judges(classes: Runs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classifiers, of other classes."""
    folder = tmp_path_factory.mktemp("judges")
    return [classes.make(folder, seed=1), classes.make(folder, seed=2, labels=("no", "yes"))]


def alone(run: Path, runs: Runs) -> TrainedModel:
    view = read_run(run)
    return TrainedModel.load(view.config(), last_state(view), base=runs.digest, store=runs.store)


def test_rows_of_eight_adapters_in_one_batch_answer_as_each_alone(talkers: list[Path], language: Runs) -> None:
    registry = AdapterRegistry(language.store)
    for number, run in enumerate(talkers):
        registry.prepare(RunSource(f"m{number}", run))()
    models = {served.batched for served in registry.served.values()}
    assert len(models) == 2, "the eight share, the ninth cannot"
    engine = Engine(registry)
    answers: dict[str, str] = {}

    def deliver(name: str) -> object:
        def take(outcome: object) -> None:
            if getattr(outcome, "answer", None) is not None:
                answers[name] = outcome.answer.text  # type: ignore[attr-defined]

        return take

    how = Sampling(max_tokens=8)
    engine.submit(
        [
            Job(
                served=served, work=Question(row={"messages": TURNS}, how=how), kind="ask",
                deliver=deliver(name), deadline_s=1e12,
            )
            for name, served in registry.served.items()
        ]
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(answers) < len(talkers) and time.monotonic() < deadline:
        time.sleep(0.01)
    engine.close()
    assert engine.batches == [COUNT, 1]
    for number, run in enumerate(talkers):
        from fedpeft.tasks import Convention

        asked = alone(run, language).answerer(Convention.MESSAGES)
        (expected,) = asked.answers([asked.tokens_of({"messages": TURNS})], [how])
        assert answers[f"m{number}"] == expected.text
    assert len(set(answers.values())) > COUNT // 2, "the adapters differ"


@dataclass
class Server:
    url: str
    process: ForkedProcess


def started(arguments: list[str], store: Path) -> Server:
    line = ("adapter", "serve", *arguments, "--port", "0", "--store", store)
    with NamedTemporaryFile(dir=store.parent) as said:
        process = start_command(*line, output=said.fileno())
        end = time.monotonic() + 120
        while " serves " not in (text := Path(said.name).read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.02)
    (first,) = (one for one in text.splitlines() if " serves " in one)
    return Server(first.split("/v1 ")[0], process)


@contextmanager
def ended(server: Server) -> Iterator[None]:
    try:
        yield
    finally:
        server.process.kill()


@pytest.fixture(scope="module")
def server(talkers: list[Path], language: Runs) -> Iterator[Server]:
    found = started([f"m{number}={run}" for number, run in enumerate(talkers[:3])], language.store)
    yield found
    found.process.kill()


def test_the_routes_answer_in_openai_s_form(server: Server, talkers: list[Path], language: Runs) -> None:
    from fedpeft.tasks import Convention

    with httpx.Client(base_url=server.url, timeout=60) as client:
        listed = client.get("/v1/models").json()
        assert [one["id"] for one in listed["data"]] == ["m0", "m1", "m2"]
        body = {"model": "m1", "messages": TURNS, "max_tokens": 6}
        whole = client.post("/v1/chat/completions", json=body).json()
        asked = alone(talkers[1], language).answerer(Convention.MESSAGES)
        (expected,) = asked.answers([asked.tokens_of({"messages": TURNS})], [Sampling(max_tokens=6)])
        assert whole["object"] == "chat.completion"
        assert whole["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
        assert whole["choices"][0]["finish_reason"] == ("stop" if expected.complete else "length")
        assert whole["usage"] == {
            "prompt_tokens": expected.asked, "completion_tokens": expected.tokens,
            "total_tokens": expected.asked + expected.tokens,
        }  # fmt: skip
        with client.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
        ) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert events[-1] == "[DONE]"
        pieces = [json.loads(event) for event in events[:-1]]
        text = "".join(one["choices"][0]["delta"]["content"] for one in pieces if one["choices"])
        assert text == expected.text
        assert pieces[-1]["usage"]["completion_tokens"] == expected.tokens
        both = client.post("/v1/completions", json={"model": "m0", "prompt": ["hello", "late"], "max_tokens": 3}).json()
        assert [one["index"] for one in both["choices"]] == [0, 1]


def test_what_is_not_done_here_is_refused_by_name_and_in_openai_s_form(server: Server) -> None:
    chat = {"model": "m0", "messages": TURNS}
    refused = [
        ({**chat, "n": 2}, 400, "n"),
        ({**chat, "tools": [{"type": "function"}]}, 400, "tools"),
        ({**chat, "logprobs": True}, 400, "logprobs"),
        ({**chat, "temperature": "hot"}, 400, "temperature"),
        ({**chat, "max_tokens": 10**9}, 400, "max_tokens"),
        ({**chat, "messages": []}, 400, "messages"),
        ({**chat, "messages": [{"role": "boss", "content": "x"}]}, 400, "messages"),
        ({**chat, "messages": [{"role": "user", "content": "hello " * 300}]}, 400, None),
        ({**chat, "model": "other"}, 404, None),
    ]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for body, status, param in refused:
            answer = client.post("/v1/chat/completions", json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, param), body
            assert error["message"].startswith("Expected")
        for content, kind, status in (
            (b"{", "application/json", 400),
            (b"[]", "application/json", 400),
            (b"{}", "text/plain", 415),
            (b'{"a":"' + b"x" * (1 << 20) + b'"}', "application/json", 413),
        ):
            answer = client.post("/v1/chat/completions", content=content, headers={"content-type": kind})
            assert answer.status_code == status
            assert "message" in answer.json()["error"]
        assert client.get("/nowhere").json()["error"]["code"] == "not_found"
        assert client.post("/classify", json={"model": "m0", "input": "x"}).status_code == 400
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400, "a name of the web"


def test_a_better_state_is_taken_on_once_a_round_has_evaluated_it(
    server: Server, talkers: list[Path], language: Runs
) -> None:
    from fedpeft.adapter import AdapterState
    from fedpeft_server.run.run_directory import RunDirectory

    body = {"model": "m2", "prompt": "hello", "max_tokens": 8}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        before = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        state = last_state(read_run(talkers[2]))
        draw = np.random.Generator(np.random.Philox(77))
        moved = {b: (state[b] + draw.standard_normal(state[b].size)).astype(np.float32) for b in state}
        with RunDirectory.open(talkers[2]) as run:
            for number, loss in ((3, 0.4), (4, 0.2)):  # the row of round 4 is of the state that round 3 left
                commit(run, number, AdapterState(state.spec, moved).to_safetensors(), loss)
        deadline = time.monotonic() + 60
        after = before
        while after == before and time.monotonic() < deadline:
            time.sleep(0.2)
            after = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert after == _plain(talkers[2], language)


def _plain(run: Path, language: Runs) -> str:
    from fedpeft.tasks import Convention

    asked = alone(run, language).answerer(Convention.PROMPT_COMPLETION)
    return asked.answers([asked.tokens_of({"prompt": "hello"})], [Sampling(max_tokens=8)])[0].text


def test_requests_at_once_share_batches_and_the_server_ends_after_its_answers(server: Server) -> None:
    begun = Event()

    def ask(number: int) -> str:
        """The end of its answer; "" if it came after the end had begun."""
        body = {"model": f"m{number % 3}", "messages": TURNS, "max_tokens": 24, "stream": True}
        lines: list[str] = []
        try:
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as answer:
                for line in answer.iter_lines():
                    begun.set()
                    lines += [line] if line else []
        except httpx.TransportError:
            assert not lines, "what had begun was cut off"
            return ""
        return lines[-1]

    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(ask, number) for number in range(6)]
        assert begun.wait(120)
        server.process.send_signal(signal.SIGTERM)
        ends = [one.result() for one in waiting]
    assert set(ends) <= {"data: [DONE]", ""}
    assert "data: [DONE]" in ends, "what was under way is answered"
    server.process.wait(60)
    assert server.process.returncode == 0


def test_classes_and_vectors_of_two_runs_with_other_classes(judges: list[Path], classes: Runs, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-sixteen-or-more\n")
    arguments = [f"{name}={run}" for name, run in zip("ab", judges, strict=True)]
    found = started([*arguments, "--token-file", str(tmp_path / "token")], classes.store)
    texts = ["the flight was late", "great", "please refund"]
    try:
        with httpx.Client(base_url=found.url, timeout=60) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.post("/classify", json={"model": "a", "input": "x"}).status_code == 401
            assert client.get("/health").status_code == 200
            client.headers["authorization"] = "Bearer a-token-of-sixteen-or-more"
            for name, run in zip("ab", judges, strict=True):
                data = client.post("/classify", json={"model": name, "input": texts}).json()["data"]
                for one, expected in zip(data, alone(run, classes).answerer().classify(texts), strict=True):
                    assert one["label"] == expected.label
                    np.testing.assert_allclose(one["probs"], list(expected.probabilities.values()), atol=1e-5)
                vectors = client.post("/v1/embeddings", json={"model": name, "input": texts}).json()["data"]
                ((_, whole),) = alone(run, classes).answerer().states([(texts[0],)])
                np.testing.assert_allclose(vectors[0]["embedding"], whole[0].mean(dim=0), atol=1e-4)
            refused = client.post("/v1/chat/completions", json={"model": "a", "messages": TURNS})
            assert "classifies" in refused.json()["error"]["message"]
    finally:
        found.process.kill()


@pytest.fixture(scope="module")
def assessors(classes: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """On one base: classes of texts and of pairs, sets of labels, numbers, tags."""
    folder = tmp_path_factory.mktemp("assessors")
    made = {
        "classes": classes.make(folder, seed=1, convention="text+label"),
        "pairs": classes.make(folder, seed=2, labels=("no", "yes"), convention="text+text_pair+label"),
    }
    for name, kind, labels, convention in (
        ("labels", "multi-label", ("heart", "lung", "skin"), "text+label"),
        ("numbers", "regression", (), "text+text_pair+label"),
        ("tags", "token-classify", ("O", "B-X"), "words+tags"),
    ):
        runs = replace(classes, kind=kind)
        made[name] = runs.make(folder, seed=len(made) + 3, labels=labels, convention=convention)
    return made


def test_every_task_with_outputs_of_its_own_is_served_as_it_is_predicted(
    assessors: dict[str, Path], classes: Runs
) -> None:
    """A number, a set of labels and tags are no class, and a pair is no text."""
    server = started([f"{name}={run}" for name, run in assessors.items()], classes.store)
    single = ["the flight was late again", "great"]
    pair = [{"text": "the flight\twas late", "text_pair": "we waited"}, {"text": "great", "text_pair": "bad"}]
    words = [{"words": ["the", "flight", "was", "late"]}, {"words": ["great"]}]
    with ended(server), httpx.Client(base_url=server.url, timeout=60) as client:
        for name, run in assessors.items():
            asked = pair if name in {"pairs", "numbers"} else words if name == "tags" else single
            answer = client.post("/classify", json={"model": name, "input": asked}).json()
            rows = [one if isinstance(one, dict) else {"text": one} for one in asked]
            view = read_run(run)
            convention = Convention(view.manifest.convention)
            expected = alone(run, classes).answerer(convention).classify([question_of(row) or "" for row in rows])
            for found, one in zip(answer["data"], expected, strict=True):
                if name == "numbers":
                    assert found.keys() == {"index", "value"}
                    assert found["value"] == pytest.approx(one.value, abs=1e-4)
                elif name == "tags":
                    assert list(zip(found["words"], found["tags"], strict=True)) == list(one.tags)
                else:
                    assert found["classes"] == list(one.probabilities)
                    np.testing.assert_allclose(found["probs"], list(one.probabilities.values()), atol=1e-5)
                    assert found.get("label") == (None if name == "labels" else one.label)
                    assert found.get("labels") == (list(one.labels) if name == "labels" else None)
            other = single[0] if name in {"pairs", "numbers"} else pair[0]
            refused = client.post("/classify", json={"model": name, "input": [asked[0], other]})
            assert refused.status_code == 400, "what it was not trained on is refused, not read as something else"
            assert "was trained on" in refused.json()["error"]["message"]
        listed = {one["id"]: (one["task"], one["classes"]) for one in client.get("/v1/models").json()["data"]}
    assert listed["numbers"] == ("regression", [])
    assert listed["tags"] == ("token-classify", ["O", "B-X"])


@pytest.mark.parametrize(
    "row",
    [{}, {"text": ""}, {"text": "a", "text_pair": " "}, {"text_pair": "a"}, {"words": []}, {"words": ["a b"]},
     {"words": "a"}, {"text": "a", "label": "x"}, {"text": 1}, 1, None, ["a", "b"]],
)  # fmt: skip
def test_an_input_that_is_no_text_pair_or_words_is_refused(row: object) -> None:
    with pytest.raises(RequestRefused, match="text_pair"):
        classify_of(json.dumps({"input": [row]}).encode())


def test_an_address_that_others_reach_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "some.host"):  # noqa: S104 - refused
        with pytest.raises(ConfigInvalid, match="--token-file"):
            serve([], store=None, host=host, port=0, token=None, waiting=1, ready=lambda url: None)
