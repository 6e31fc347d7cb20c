"""Every operation with hostile input, made from the OpenAPI document; the answer is always one that it names."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from administration import Port, close, open_port, run_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft_server.admin.openapi import document
from fedpeft_server.admin.routes import OPERATIONS

DOCUMENT: dict[str, Any] = document()
ROUTES = [
    (method, path, about) for path, methods in DOCUMENT["paths"].items() for method, about in methods.items()
    if path != "/v1/events"
]  # fmt: skip
NASTY = st.sampled_from([
    "", "1", "ward-a", "..", ".", "%2e%2e", "a" * 129, "\u0000", "é", "\U0001f600", "<script>", "' OR 1=1 --", "1e999",
    "-1", "0x10", "null", "٣", "20261130-notes", "adapter_model.safetensors",
])  # fmt: skip
TEXT = st.one_of(NASTY, st.text(max_size=40))
VALUE = st.one_of(
    TEXT, st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.floats(), st.lists(TEXT, max_size=2),
    st.dictionaries(TEXT, TEXT, max_size=2),
)  # fmt: skip
BODIES = [
    b"", b"{", b"[]", b"null", b"{}{}", b"[" * 5000, b'{"a":' * 3000, b'{"uses": 1e999}', b'{"uses": NaN}', b"\xff\xfe",
    b'{"uses": 1, "uses": 2}', b'{"reason": "\\ud800"}', b'{"config": "' + b"x" * 300_000 + b'"}', b"\x00" * 100,
    b'{"uses": ' + b"9" * 5000 + b"}",
]  # fmt: skip
MAY_BE = {"200", "201", "400", "403", "404", "409", "411", "413", "415", "422", "429"}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    made = open_port(tmp_path_factory.mktemp("home") / "coordinator")
    made.api._callers._holders._burst = 1e9
    made.device("ward-a")
    run_of(made)
    yield made
    close(made)


@pytest.fixture(scope="module")
def client(fuzzed: Port):
    with fuzzed.client(fuzzed.token("admin"), **{"content-type": "application/json"}) as made:
        yield made


def test_the_document_is_one_and_describes_every_operation_that_there_is_from_afar() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    listed = {about["operationId"] for _, _, about in ROUTES}
    assert listed == {one.name for one in OPERATIONS if one.role is not None}
    for _, path, about in ROUTES:
        assert about["summary"], path
        named = {one["name"] for one in about["parameters"] if one["in"] == "path"}
        assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}


@pytest.mark.parametrize(("method", "path", "about"), ROUTES, ids=lambda one: one if isinstance(one, str) else "")
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_input_is_answered_by_a_failure(client, method: str, path: str, about: dict[str, Any], data) -> None:
    fields = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    known = [*fields.get("properties", {})]
    query = [one["name"] for one in about["parameters"] if one["in"] == "query"]
    for part in [part for part in path.split("/") if part.startswith("{")]:
        path = path.replace(part, quote(data.draw(TEXT), safe=data.draw(st.sampled_from(["", "/%"]))))
    names = st.one_of(st.sampled_from(known), TEXT) if known else TEXT
    body = data.draw(st.one_of(st.sampled_from(BODIES), st.dictionaries(names, VALUE, max_size=4)))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    queries = st.dictionaries(st.one_of(st.sampled_from(query), TEXT) if query else TEXT, TEXT, max_size=3)
    asked = data.draw(queries) if method == "get" else {}
    for mark in "?#":
        path = path.replace(mark, quote(mark))
    path = path.replace("/..", "/%2E%2E").replace("/.", "/%2E")  # or the client goes there by itself
    answer = client.request(method, path, params=asked, content=content if method == "post" else None)
    assert str(answer.status_code) in MAY_BE, answer.text
    assert str(answer.status_code) in about["responses"], (answer.request.url, answer.status_code, answer.text)
    if answer.headers["content-type"] == "application/json":
        answer.json()


def test_what_was_fuzzed_is_whole_afterwards(fuzzed: Port) -> None:
    assert fuzzed.site.audit.head()
    assert fuzzed.site.queue.jobs()
    assert fuzzed.site.registry.device("ward-a").code == "ABCD-EFGH"
