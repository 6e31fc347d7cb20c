"""What an address is told: records of the audit log in their order, signed, each until it was taken."""

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from pathlib import Path

import pytest

from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.testing.clock import FakeClock
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.webhooks.deliveries import OLDEST, Deliveries, Refused, send
from fedpeft_server.webhooks.hooks import MOST_HOOKS, Webhook, Webhooks
from tests.webhooks.address import Address, serving

TOLD = (AuditEvent.RUN_STARTED, AuditEvent.RUN_ENDED)


class Site:
    """A log, the webhooks beside it, and what a coordinator's thread does each second."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self.outcomes = path, FakeClock(), list[str]()
        self.audit, self.hooks = AuditLog(path / "audit.jsonl", self.clock), Webhooks(path / "webhooks")
        self.restart()

    def restart(self) -> None:
        self.deliveries = Deliveries(self.hooks, self.audit, self.clock, self.outcomes.append)

    def note(self, event: AuditEvent, subject: str = "run-1") -> int:
        return self.audit.append(event, actor="coordinator", subject=subject, detail={"rounds": 3}).sequence

    def add(self, url: str, name: str = "ops") -> Webhook:
        newest = max((record.sequence for record in self.audit.records()), default=-1)
        return self.hooks.add(name, url, TOLD, last=newest)

    def look(self) -> None:
        for hook in self.hooks.all():
            self.deliveries._serve(hook)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_address_is_told_of_its_events_from_then_on_once_and_in_order(site: Site, address: Address) -> None:
    site.note(AuditEvent.RUN_STARTED, "before it was added")
    site.add(address.url)
    for number in range(200):
        site.note(AuditEvent.RUN_STARTED if number % 50 == 0 else AuditEvent.ROUND_COMMITTED, f"run-{number}")
    site.note(AuditEvent.RUN_ENDED, "run-200")
    site.look()
    site.look()
    site.restart()
    site.look()
    told = [json.loads(body) for _, body in address.heard]
    assert [one["data"]["subject"] for one in told] == ["run-0", "run-50", "run-100", "run-150", "run-200"]
    assert [one["type"] for one in told] == ["run-started"] * 4 + ["run-ended"]
    assert site.outcomes == ["taken"] * 5
    known = {record.sequence: record for record in site.audit.records()}
    for one in told:
        record = known[one["data"]["sequence"]]
        assert (one["timestamp"], one["data"]["detail"], one["data"]["actor"]) == (
            record.utc,
            {"rounds": 3},
            "coordinator",
        )


def test_a_message_is_signed_as_standard_webhooks_says(site: Site, address: Address) -> None:
    """Written again from the document: HMAC-SHA256 of `id.timestamp.body` under the base64 behind `whsec_`."""
    hook = site.add(address.url)
    site.note(AuditEvent.RUN_ENDED)
    site.look()
    ((headers, body),) = address.heard
    key = base64.b64decode(hook.secret_text.removeprefix("whsec_"))
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert int(headers["webhook-timestamp"]) == int(site.clock.utc().timestamp())
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 410, 429, 500, 503])
def test_what_was_not_taken_comes_again_after_a_pause_before_anything_else(
    site: Site, address: Address, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A redirect too: nobody is told but the address that was named."""
    hook = site.add(address.url)
    site.note(AuditEvent.RUN_STARTED)
    site.note(AuditEvent.RUN_ENDED)
    address.answers = [status, status]
    with caplog.at_level(logging.WARNING):
        for pause_s in (0.0, 1.9, 0.2, 3.0):  # tried at once, not yet, again after two seconds, not yet
            site.clock.advance(pause_s)
            site.look()
    assert address.heard == []
    assert site.outcomes == ["refused", "refused"]
    site.clock.advance(1.1)
    site.look()
    assert address.types() == ["run-started", "run-ended"]
    assert "ops" in caplog.text
    assert hook.secret.hex() not in caplog.text
    assert hook.secret_text not in caplog.text


def test_an_address_that_was_down_is_told_what_is_not_too_old(site: Site, address: Address) -> None:
    site.add(address.url)
    site.note(AuditEvent.RUN_STARTED, "old")
    site.clock.advance(OLDEST.total_seconds() + 1)
    site.note(AuditEvent.RUN_STARTED, "new")
    site.look()
    assert [json.loads(body)["data"]["subject"] for _, body in address.heard] == ["new"]
    assert site.outcomes == ["passed-over", "taken"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"])
def test_a_message_to_this_machine_does_not_leave_it(
    site: Site, address: Address, monkeypatch: pytest.MonkeyPatch, host: str, variable: str
) -> None:
    """A proxy would read it in clear, and bring it to a localhost of its own."""
    proxy = Address()
    proxy.holds.set()
    server = serving(proxy)
    monkeypatch.setenv(variable, proxy.url)
    monkeypatch.delenv("REQUEST_METHOD", raising=False)
    hook = site.add(address.url.replace("127.0.0.1", host))
    try:
        send(hook, "msg_1", b'{"type": "test"}', timestamp=1)
    except Refused:
        assert host == "127.0.0.2", "where nobody listens"
    finally:
        server.shutdown()
        server.server_close()
    assert proxy.heard == []


def test_nobody_is_there_or_speaks_http(site: Site) -> None:
    import socket

    hook = Webhook(name="ops", url="http://127.0.0.1:1/", events=TOLD, secret=bytes(32))
    with pytest.raises(Refused):
        send(hook, "msg_1", b"{}", timestamp=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(
            target=lambda: server.accept()[0].sendall(b"\x16\x03\x01 no HTTP\r\n\r\n"), daemon=True
        ).start()
        with pytest.raises(Refused):
            send(Webhook(name="a", url=f"http://127.0.0.1:{server.getsockname()[1]}/", events=TOLD, secret=bytes(32)),
                 "msg_1", b"{}", timestamp=1)  # fmt: skip


def test_a_slow_address_holds_no_other_and_not_the_end(site: Site, address: Address) -> None:
    slow = Address()
    server = serving(slow)
    try:
        site.add(slow.url, "slow")
        site.add(address.url, "quick")
        site.note(AuditEvent.RUN_ENDED)
        site.deliveries.start()
        end = time.monotonic() + 20
        while not address.heard and time.monotonic() < end:
            time.sleep(0.02)
        assert address.types() == ["run-ended"]
        assert slow.heard == []
        site.deliveries.stop()
        assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("webhook"))
    finally:
        slow.holds.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example/fedpeft?room=7",
        "https://[2001:db8::1]:8443/",
        "http://127.0.0.1:9/",
        "http://[::1]:9/x",
        "http://localhost/",
    ],
)
def test_an_address_is_https_or_this_machine(site: Site, url: str) -> None:
    assert site.add(url).url == url
    assert [hook.url for hook in site.hooks.all()] == [url]


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example", "http://hooks.example/", "http://127.0.0.1.example/", "http://10.0.0.1/", "ftp://a/",
        "file:///etc/passwd", "https://", "https://user:secret@hooks.example/", "https://a b/", "https://a/\n",
        "https://a:0/", "https://a:99999/", "https://[::1/", "https://h\u00e4/",
    ],
)  # fmt: skip
def test_any_other_address_is_refused_and_nothing_is_kept(site: Site, url: str) -> None:
    with pytest.raises(ConfigInvalid):
        site.add(url)
    assert site.hooks.all() == ()


@pytest.mark.parametrize("name", ["", "Ops", "a/b", "..", "-a", "a-", "a" * 41, "a\n"])
def test_a_name_is_no_path(site: Site, name: str) -> None:
    with pytest.raises(ConfigInvalid):
        site.add("https://a.example/", name)
    assert site.hooks.all() == ()


def test_there_are_only_so_many_each_once_and_removed_ones_are_told_nothing(site: Site, address: Address) -> None:
    for number in range(MOST_HOOKS):
        site.add(address.url, f"hook-{number}")
    with pytest.raises(ConfigInvalid, match=f"at most {MOST_HOOKS}"):
        site.add(address.url, "one-more")
    site.hooks.remove("hook-0")
    with pytest.raises(ConfigInvalid, match="new name"):
        site.add(address.url, "hook-1")
    with pytest.raises(ConfigInvalid, match="none called"):
        site.hooks.remove("hook-0")
    site.note(AuditEvent.RUN_ENDED)
    site.look()
    assert len(address.heard) == MOST_HOOKS - 1


def test_one_that_is_removed_and_added_again_is_told_what_happens_after_that(site: Site, address: Address) -> None:
    site.add(address.url)
    site.note(AuditEvent.RUN_STARTED)
    site.look()
    site.hooks.remove("ops")
    site.note(AuditEvent.RUN_STARTED, "between")
    site.add(address.url)
    site.note(AuditEvent.RUN_ENDED, "after")
    site.look()
    assert [json.loads(body)["data"]["subject"] for _, body in address.heard] == ["run-1", "after"]


@pytest.mark.parametrize("again", [False, True], ids=["removed", "and added again"])
@pytest.mark.parametrize("told", [1, 2, 70])
def test_one_that_is_removed_while_it_is_told_hears_nothing_more(
    site: Site, address: Address, told: int, again: bool
) -> None:
    """With much still to be told: within a page of the log, and beyond it."""
    other = Address()
    other.holds.set()
    server = serving(other)

    def count(_: str) -> None:
        if len(address.heard) == told and not site.outcomes:
            site.outcomes.append("removed")
            site.hooks.remove("ops")
            if again:
                site.add(other.url)

    site.deliveries = Deliveries(site.hooks, site.audit, site.clock, count)
    site.add(address.url)
    for number in range(100):
        site.note(AuditEvent.RUN_STARTED, f"run-{number}")
    try:
        site.look()
        assert len(address.heard) == told
        site.note(AuditEvent.RUN_ENDED, "after")
        site.look()
        assert len(address.heard) == told
        assert other.types() == (["run-ended"] if again else [])
        assert [hook.url for hook in site.hooks.all()] == ([other.url] if again else [])
        assert sorted(path.name for path in site.path.glob("webhooks/*.last")) == (["ops.last"] if again else [])
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("noted", [None, "", "x", "999"], ids=["gone", "empty", "no number", "of a longer log"])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_not_known_of_one_does_not_silence_it(
    site: Site, address: Address, noted: str | None, restarted: bool
) -> None:
    site.add(address.url)
    (path,) = site.path.glob("webhooks/*.last")
    site.note(AuditEvent.RUN_STARTED)
    site.look()
    path.unlink() if noted is None else path.write_text(noted)
    site.look()
    for number in range(3):
        site.note(AuditEvent.RUN_ENDED, f"{number}")
        if restarted:
            site.restart()
        site.look()
    assert address.types() == ["run-started", *["run-ended"] * 3]


def test_a_damaged_file_is_named_and_its_secret_is_nobody_elses(site: Site) -> None:
    site.add("https://a.example/")
    (path,) = site.path.glob("webhooks/*.json")
    assert path.stat().st_mode & 0o077 == 0
    path.write_text('{"url": "https://a.example/"}')
    with pytest.raises(IntegrityFailed, match=r"ops\.json"):
        site.hooks.all()
