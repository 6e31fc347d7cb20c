"""Both halves of the Fleet protocol against each other, through the gateway and TLS, with real sockets; no torch.

Held here too: the facts of Flower 1.41 that ``superlink`` and ``fleet`` rest on.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.errors import NotEnrolled, PolicyRefused
from fedpeft.flower import NodeContext, client_app
from fedpeft.flower.exchange import FleetTransport
from fedpeft.flower.fleet import Fleet
from fedpeft.flower.fleet_client import FleetTarget
from fedpeft.flower.superlink import SuperLink
from fedpeft.ids import NodeId
from fedpeft.round.transport import Reply, Stage
from fedpeft_client.enrolment.keys import new_device_key, public_key
from fedpeft_client.process.agent import WakeSignal
from fedpeft_server.enrolment.active_devices import Standing
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.service.fleet_gateway import FleetGateway
from fedpeft_server.service.listener import Listener, take_port
from fedpeft_server.service.prometheus import Meters

Handle = Callable[[Stage, bytes], bytes]


@dataclass
class Federation:
    """A SuperLink behind a gateway, and devices on threads."""

    folder: Path
    revoked: dict[bytes, str] = field(default_factory=dict)
    ends: dict[str, BaseException | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock, self.bells = SystemClock(), {}
        self.link = SuperLink(self.folder / "objects", wake=lambda node: self.bells[node].ring())
        self.names: dict[bytes, str] = {}
        gateway = FleetGateway(self.link.handlers, self._standing, clock=self.clock, meters=Meters())
        self.port_socket = take_port("127.0.0.1", 0, "test")
        self.port = self.port_socket.getsockname()[1]
        home = CoordinatorHome(self.folder)
        self.ca = home.ca_certificate.read_bytes()
        self.listener = Listener(gateway, self.port_socket, certificate=home.server_certificate, key=home.server_key)
        self.listener.start()

    def _standing(self, key: bytes) -> Standing | None:
        name = self.names.get(key)
        return None if name is None else Standing(device=name, revoked=self.revoked.get(key, ""))

    @contextmanager
    def device(self, name: str, handle: Handle, *, key: bytes | None = None) -> Iterator[NodeId]:
        """A connected device."""
        key = key or new_device_key()
        self.names[public_key(key)] = name
        node = self.link.enrol(public_key(key), name)
        bell, stop, up = WakeSignal(lambda: True), threading.Event(), threading.Event()
        self.bells[node] = bell

        def answer(context: NodeContext, stage: Stage, payload: bytes) -> bytes:
            return handle(stage, payload)

        fleet = Fleet(
            lambda: FleetTarget(address=f"localhost:{self.port}", ca=self.ca, node_key=key),
            client_app(answer),
            wait=bell.wait,
            stopping=stop.is_set,
        )

        def serve() -> None:
            try:
                fleet.serve(lambda node: up.set())
                self.ends[name] = None
            except NotEnrolled as error:
                self.ends[name] = error

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert up.wait(20.0), f"{name} did not connect"
        try:
            yield node
        finally:
            stop.set()
            bell.ring()
            thread.join(20.0)
            fleet.close()

    def exchange(self, stage: Stage, requests: dict[NodeId, bytes], *, deadline_s: float = 20.0) -> dict[NodeId, Reply]:
        transport = FleetTransport(self.link, self.clock)
        return {reply.node: reply for reply in transport.exchange(stage, requests, deadline_s=deadline_s)}

    def close(self) -> None:
        self.listener.stop()
        self.link.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's home, for its authority and its server's certificate."""
    home = CoordinatorHome(tmp_path_factory.mktemp("home") / "coordinator")
    initialise(home, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    return home.path


@pytest.fixture(scope="module")
def federation(folder: Path) -> Iterator[Federation]:
    made = Federation(folder)
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 5_000, 6_000_000])
def test_a_payload_survives_the_way_there_and_back(federation: Federation, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    with federation.device(f"echo-{size}", lambda stage, data: stage.value.encode() + data) as node:
        assert node in federation.link.online()
        (reply,) = federation.exchange(Stage.MASK, {node: payload}).values()
    assert reply.payload == b"train.mask" + payload
    assert (reply.error, reply.bytes_down, reply.bytes_up) == ("", size, size + 10)


def test_a_device_that_leaves_is_not_online_any_more(federation: Federation) -> None:
    with federation.device("leaver", lambda stage, data: data) as node:
        pass
    assert node not in federation.link.online()
    (reply,) = federation.exchange(Stage.FIT, {node: b""}, deadline_s=5.0).values()
    assert reply.payload is None
    assert reply.error


def test_a_failure_on_the_device_is_a_reply_that_says_no_more_than_that(federation: Federation) -> None:
    def refuse(stage: Stage, data: bytes) -> bytes:
        raise PolicyRefused("Expected night, found day.")

    with federation.device("refuser", refuse) as node:
        (reply,) = federation.exchange(Stage.FIT, {node: b"x"}).values()
    assert (reply.payload, reply.error) == (None, "the device could not answer; its log has the details")


def test_a_device_that_restarts_in_the_middle_is_asked_again_and_answers_once(federation: Federation) -> None:
    key, asked = new_device_key(), threading.Event()
    release = threading.Event()

    def dies(stage: Stage, data: bytes) -> bytes:
        asked.set()
        release.wait(20.0)  # as good as killed: its answer comes after the other's
        return b"late"

    with federation.device("restarts", dies, key=key) as node:
        replies: list[Reply] = []
        transport = FleetTransport(federation.link, federation.clock)
        waiting = threading.Thread(
            target=lambda: replies.extend(transport.exchange(Stage.FIT, {node: b"work"}, deadline_s=30.0))
        )
        waiting.start()
        assert asked.wait(20.0)
        with federation.device("restarts", lambda stage, data: b"again " + data, key=key) as again:
            assert again == node, "taken back at once, within the old process's heartbeat"
            waiting.join(30.0)
        release.set()
    assert [reply.payload for reply in replies] == [b"again work"]


def test_a_late_answer_is_not_counted_in_the_next_exchange(federation: Federation) -> None:
    release = threading.Event()

    def slow(stage: Stage, data: bytes) -> bytes:
        if data == b"first":
            release.wait(20.0)
        return data

    with federation.device("slow", slow) as node:
        assert federation.exchange(Stage.FIT, {node: b"first"}, deadline_s=0.5) == {}
        release.set()
        (reply,) = federation.exchange(Stage.FIT, {node: b"second"}).values()
    assert reply.payload == b"second"


def test_an_exchange_leaves_nothing_behind_in_flowers_state(federation: Federation) -> None:
    link = federation.link
    state, before = link._state, (len(link._objects), len(link._state._object_push_sessions))
    with federation.device("ward-a", lambda stage, data: data) as node:
        for _ in range(3):
            (reply,) = federation.exchange(Stage.FIT, {node: b"x" * 200_000}).values()
            assert reply.payload == b"x" * 200_000
    assert (len(link._objects), len(state._object_push_sessions)) == before
    assert not list((federation.folder / "objects").iterdir())
    assert state.message_ins_store == state.message_res_store == {}


def test_a_revoked_device_ends_with_the_reason_and_whoever_waits_for_it_hears_so(federation: Federation) -> None:
    key = new_device_key()
    with federation.device("thief", lambda stage, data: data, key=key) as node:
        federation.revoked[public_key(key)] = "thief was revoked: stolen"
        federation.link.expel(public_key(key))
        (reply,) = federation.exchange(Stage.FIT, {node: b""}, deadline_s=5.0).values()
        assert reply.payload is None
        federation.bells[node].ring()
        for _ in range(500):
            if "thief" in federation.ends:
                break
            threading.Event().wait(0.02)
    assert "stolen" in str(federation.ends["thief"])


def test_nodes_survive_a_restart_of_the_coordinator(folder: Path, tmp_path: Path) -> None:
    key = public_key(new_device_key())
    first = SuperLink(tmp_path / "objects")
    node = first.enrol(key, "ward-a")
    assert first.enrol(key, "ward-a") == node
    first.close()
    second = SuperLink(tmp_path / "objects")
    assert second.enrol(key, "ward-a") == node
    second.close()
