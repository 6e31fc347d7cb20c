"""The administration's port under attack: what it costs, what it tells, and what it lets nobody do."""

import json
import socket
import ssl
import time
from collections.abc import Iterator

import httpx
import pytest
from administration import Port, close, open_port, run_of

from fedpeft.testing.clock import FakeClock
from fedpeft_server.admin.http import BODY_BYTES
from fedpeft_server.admin.routes import CONFIG_CHARACTERS
from fedpeft_server.admin.sessions import LONGEST_S, MOST_OF_A_TOKEN, Sessions
from fedpeft_server.admin.streams import STREAMS_OF_A_TOKEN
from fedpeft_server.enrolment.registry import Status
from fedpeft_server.service.connection_limits import ConnectionTimeouts


def raw(port: Port, say: bytes, *, more: bytes = b"", wait_s: float = 5.0) -> bytes:
    """What comes back to these bytes, until the other side ends it."""
    with (
        socket.create_connection(("127.0.0.1", port.port), timeout=wait_s) as plain,
        port.trust().wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        found = b""
        try:
            secured.sendall(say)
            for _ in range(64 if more else 0):
                secured.sendall(more)
            while chunk := secured.recv(65536):
                found += chunk
        except OSError:
            pass
    return found


def head(token: str, line: str, *more: str) -> bytes:
    lines = [line, "host: localhost", f"authorization: Bearer {token}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    made = open_port(
        tmp_path_factory.mktemp("home") / "c", timeouts=ConnectionTimeouts(silence_s=0.4, silent=16, kept=64)
    )
    yield made
    close(made)


@pytest.mark.parametrize(
    ("say", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"x" * 1024),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 128),
        (b"GET /" + b"x" * 4096, b""),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b""),
        (b"", b""),
    ],
    ids=["long-header", "many-headers", "long-path", "slow-headers", "silence"],
)
def test_headers_without_end_are_cut_off(impatient: Port, say: bytes, more: bytes) -> None:
    began = time.monotonic()
    answer = raw(impatient, say, more=more)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    assert time.monotonic() - began < 4.0


def test_nothing_is_read_of_a_body_before_its_sender_is_known_and_may(port: Port) -> None:
    viewer = port.token("viewer")
    for token, status in (("nobody", b"401"), (viewer, b"403")):
        answer = raw(port, head(token, "POST /v1/runs HTTP/1.1", "content-length: 1000000"))
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:40]  # though no byte of the body was sent
        assert b"connection: close" in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((f"content-length: {BODY_BYTES + 1}",), b"413"),
        (("content-length: 99999999999999999999",), b"4"),
        (("transfer-encoding: chunked",), b"4"),
        (("content-length: 5", "content-length: 6"), b"400"),
        (("content-length: 2", "content-type: text/plain"), b"415"),
        (("content-length: 2", "content-type: application/json", "authorization: Bearer x"), b"400"),
    ],
)
def test_bodies_of_another_kind_are_refused(port: Port, headers: tuple[str, ...], status: bytes) -> None:
    answer = raw(port, head(port.token("admin"), "POST /v1/join-tokens HTTP/1.1", *headers) + b"{}")
    assert answer.startswith(b"HTTP/1.1 " + status) or answer == b"", answer[:60]


def test_a_body_that_does_not_come_is_waited_for_only_so_long(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft_server.admin.http.BODY_S", 0.2)
    answer = raw(port, head(port.token("admin"), "POST /v1/join-tokens HTTP/1.1", "content-length: 10") + b"{")
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/../../etc/passwd", "/v1/runs/..%2f..%2fetc%2fpasswd", "/v1/runs/%2e%2e", "/v1/runs/.%2e/adapter",
        "/v1/runs/1/adapter/..%2f..%2f..%2fpki%2fca.key", "/v1/runs/1/adapter/%2e%2e", "/v1/runs/1/adapter/..",
        "/v1/runs/1%00", "/v1/runs/%ff%fe", "/v1/runs//adapter", "/v1/runs/1/adapter/.hidden", "/page.js/../api.py",
        "/v1/runs/1/adapter/linked", "//etc/passwd", "/v1/devices/%F0%9F%98%80", "/v1/runs/1;a=b", "/v1/runs/1\\..",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_a_runs_adapter(port: Port, path: str) -> None:
    folder = port.site.home.runs / "20261130-notes" / "adapters" / "final"
    if not folder.exists():
        run_of(port)
        (folder / ".hidden").write_text("x")
        (folder / "linked").symlink_to(port.site.home.ca_key)
    answer = raw(port, head(port.token("submitter"), f"GET {path} HTTP/1.1", "connection: close"))
    assert answer[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400", b""), answer[:200]
    assert b"PRIVATE KEY" not in answer


def test_guessing_is_slowed_down_and_told_apart_from_nothing_and_holders_do_not_notice(fresh: Port) -> None:
    good = fresh.token("viewer")
    token_id = good.split(".")[1]
    guesses = [f"fa1.{token_id}.{'A' * 43}.{'A' * 43}", f"fa1.{'0' * 16}.{'A' * 43}.{'A' * 43}", "x", "y.z"]
    with fresh.client() as client:
        answers = [client.get("/v1/runs", headers={"authorization": f"Bearer {guesses[at % 4]}"}) for at in range(40)]
        told = {(one.status_code, one.text) for one in answers}
        assert {status for status, _ in told} == {401, 429}
        assert len(told) == 2, "an unknown id, a wrong secret and no token are answered alike"
        assert client.get("/v1/runs", headers={"authorization": f"Bearer {good}"}).status_code == 200
        guessed = client.post("/v1/session", json={"token": guesses[0]})
        assert guessed.status_code == 429
        assert client.post("/v1/session", json={"token": good}).status_code == 201
    fresh.api.close()
    (record,) = [one for one in fresh.site.audit.records() if one.event.value == "strangers-refused"]
    assert (record.subject, record.detail["count"]) == ("administration", 41)


def test_streams_are_few_and_end_with_their_token(fresh: Port) -> None:
    token = fresh.token("viewer")
    with fresh.client(token) as client:
        opened = [client.stream("GET", "/v1/events") for _ in range(STREAMS_OF_A_TOKEN)]
        answers = [one.__enter__() for one in opened]
        assert {one.status_code for one in answers} == {200}
        assert client.get("/v1/events").status_code == 429
        assert client.get("/v1/runs").status_code == 200
        with fresh.client(fresh.token("viewer")) as another, another.stream("GET", "/v1/events") as one:
            assert one.status_code == 200
        opened[0].__exit__(None, None, None)
        deadline = time.monotonic() + 5.0  # the place is free once a write to who left has failed
        while True:
            with client.stream("GET", "/v1/events") as one:
                if one.status_code == 200:
                    break
            assert time.monotonic() < deadline
        fresh.site.access.revoke(token.split(".")[1])
        for answer in answers[1:]:
            for _ in answer.iter_raw():
                pass
        assert client.get("/v1/runs").status_code == 401
        for one in opened[1:]:
            one.__exit__(None, None, None)


def session(port: Port, role: str = "admin") -> tuple[httpx.Client, str]:
    """A browser that has signed in, and the session's check."""
    client = port.client(**{"sec-fetch-site": "same-origin", "origin": port.url})
    answer = client.post("/v1/session", json={"token": port.token(role)})
    assert answer.status_code == 201
    return client, answer.json()["check"]


def test_a_browsers_cookie_alone_changes_nothing(port: Port) -> None:
    port.device("ward-session", Status.ACTIVE)
    client, check = session(port)
    path = "/v1/devices/ward-session/revoke"
    refused = [
        client.post(path, json={}),
        client.post(path, json={}, headers={"x-fedpeft-check": "x" * 43}),
        client.post(path, json={}, headers={"x-fedpeft-check": check, "origin": "https://evil.example"}),
        client.post(path, json={}, headers={"x-fedpeft-check": check, "origin": "null"}),
        client.post(path, json={}, headers={"x-fedpeft-check": check, "sec-fetch-site": "cross-site"}),
        client.post(path, json={}, headers={"x-fedpeft-check": check, "sec-fetch-site": "same-site"}),
        client.get("/v1/devices", headers={"sec-fetch-site": "cross-site"}),
        client.delete("/v1/session"),
    ]
    assert {one.status_code for one in refused} == {403}
    assert port.site.registry.device("ward-session").status is Status.ACTIVE
    assert client.post(path, json={}, headers={"x-fedpeft-check": check}).status_code == 200
    assert client.delete("/v1/session", headers={"x-fedpeft-check": check}).status_code == 200
    assert client.get("/v1/session").json() == {"name": None}
    client.close()


def test_signing_in_from_another_sites_page_is_refused(port: Port) -> None:
    with port.client() as client:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert client.post("/v1/session", json={"token": port.token()}, headers=headers).status_code == 403
        text = json.dumps({"token": port.token()})
        assert client.post("/v1/session", content=text, headers={"content-type": "text/plain"}).status_code == 415
        assert client.post("/v1/session", json={"token": "x" * 5000}).status_code == 413


def test_a_session_ends_with_its_token_and_its_time_and_the_oldest_one_too_many_goes() -> None:
    clock = FakeClock()
    sessions = Sessions(clock, lambda size: bytes([len(made)]) * size)
    made: list[str] = []
    for _ in range(MOST_OF_A_TOKEN + 1):
        made.append(sessions.begin("token")[0])
    assert [sessions.find(one) is not None for one in made] == [False] + [True] * MOST_OF_A_TOKEN
    clock.advance(LONGEST_S)
    assert not any(sessions.find(one) for one in made)


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/openapi.json", "/v1/status", "/nothing"])
def test_every_answer_says_what_a_browser_may_do_with_it(port: Port, path: str) -> None:
    with port.client(port.token("viewer")) as client:
        headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_a_report_is_a_download_and_no_page_of_this_coordinator(port: Port) -> None:
    number = run_of(port, "20261130-report")
    with port.client(port.token("viewer")) as client:
        answer = client.get(f"/v1/runs/{number}/report")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"


def test_bodies_and_connections_of_one_token_are_few_and_others_are_served(port: Port) -> None:
    token, size = port.token("submitter"), BODY_BYTES - 1
    begun = head(token, "POST /v1/runs HTTP/1.1", f"content-length: {size}", "content-type: application/json")
    lines = []
    try:
        for _ in range(24):
            plain = socket.create_connection(("127.0.0.1", port.port), timeout=5)
            line = port.trust().wrap_socket(plain, server_hostname="localhost")
            lines.append(line)
            line.sendall(begun + bytes(1000))
        with port.client(port.token("submitter")) as client:
            assert client.get("/v1/runs").status_code == 200
            assert client.post("/v1/runs", json={"config": ""}).status_code == 422
        end = time.monotonic() + 8.0  # a body is given up after 10 s
        while len(open_ones := [line for line in lines if is_open(line)]) > 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(open_ones) <= 2
    finally:
        for line in lines:
            line.close()


def is_open(line: ssl.SSLSocket) -> bool:
    line.settimeout(0.01)
    try:
        while line.recv(65536):
            pass
    except (TimeoutError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(port: Port, version: ssl.TLSVersion) -> None:
    context, refusals = port.trust(), (ssl.SSLError, ConnectionError)
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port.port), timeout=5) as plain, pytest.raises(refusals):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_reader_that_takes_nothing_is_let_go_and_its_place_is_free(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpeft_server.admin.http.SEND_S", 0.3)
    number = run_of(port, "20261130-large")
    large = port.site.home.runs / "20261130-large" / "adapters" / "final" / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(64 * 2**20)
    token, began = port.token("submitter"), time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", port.port), timeout=20) as plain,
        port.trust().wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(head(token, f"GET /v1/runs/{number}/adapter/large.safetensors HTTP/1.1"))
        time.sleep(2.5)  # far more than the 0.3 s, for a crowded machine
        found = 0
        try:
            while chunk := secured.recv(1 << 20):
                found += len(chunk)
        except OSError:
            pass
    assert found < 64 * 2**20, "it was cut off"
    assert time.monotonic() - began < 10.0


N = CONFIG_CHARACTERS - 100
# Most took from 5 to more than 20 s before there was a look at them first; now 1.3 s at most.
SLOW = {
    "dotted key": "a." * (N // 2) + "a = 1",
    "dotted table": "[" + "a." * (N // 2) + "a]",
    "dotted keys": "\n".join("x." * 190 + f"k{at} = 1" for at in range(N // 400)),
    "quoted keys": '"="."="' * (N // 8) + " = 1",
    "tables": "\n".join(f"[a{at}]" for at in range(N // 8)),
    "dates": "\n".join(f"a{at} = 2020-01-01" for at in range(N // 20)),
    "unknown keys": "\n".join(f"a{at} = 1" for at in range(490)),
    "numbers": "a = [" + "1," * (N // 2 - 10) + "]",
    "nesting": "a = " + "[" * 3000,
    "digits": "a = " + "9" * (N - 10),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_configuration_that_takes_long_to_read_is_refused_before_it_is(port: Port, kind: str) -> None:
    with port.client(port.token("submitter")) as client:
        began = time.monotonic()
        answer = client.post("/v1/runs", json={"config": SLOW[kind]})
        taken_s = time.monotonic() - began
    assert answer.status_code == 422, answer.text[:200]
    assert taken_s < 6.0, f"{taken_s:.1f} s"


@pytest.mark.parametrize("cookie", ['__Host-fedpeft="' + "\\" * 15000 + '"', ";".join(["a=b"] * 3500)])
def test_a_cookie_that_takes_long_to_read_is_not_read_that_way(port: Port, cookie: str) -> None:
    began = time.monotonic()
    answer = raw(port, f"GET /v1/runs HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\n\r\n".encode())
    assert answer[:12] in (b"HTTP/1.1 401", b"HTTP/1.1 429")
    assert time.monotonic() - began < 3.0  # a second of it is the connection's end
