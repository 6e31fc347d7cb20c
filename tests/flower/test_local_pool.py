"""One device that hangs costs its own answers and no other's."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fedpeft.clock import SystemClock
from fedpeft.flower import GridTransport, LocalGrid, NodeContext, client_app
from fedpeft.ids import NodeId
from fedpeft.round.transport import Requests, Stage


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()  # lets the hung threads end


def answers(transport: GridTransport, nodes: list[NodeId], *, deadline_s: float) -> dict[NodeId, str]:
    replies = transport.exchange(Stage.FIT, dict.fromkeys(nodes, b"x"), deadline_s=deadline_s)
    return {reply.node: reply.error or "answered" for reply in replies}


def one_worker_where(*, hangs: int, until: threading.Event) -> tuple[GridTransport, list[bytes]]:
    """Three devices that take turns, one of which hangs, and what they heard."""
    heard: list[bytes] = []

    def handler(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        heard.append(payload)
        if node.partition == hangs:
            until.wait(60)
        return payload

    return GridTransport(LocalGrid(client_app(handler), devices=3, workers=1), SystemClock()), heard


@pytest.mark.parametrize("workers", [1, 2])
def test_one_hung_device_does_not_starve_the_others_in_later_rounds(workers: int, stuck: threading.Event) -> None:
    def handler(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        if node.partition == 0:
            stuck.wait(60)
        return payload

    transport = GridTransport(LocalGrid(client_app(handler), devices=5, workers=workers), SystemClock())
    nodes = list(transport.nodes())
    first = answers(transport, nodes, deadline_s=1.0)
    assert nodes[0] not in first
    for _ in range(3):
        later = answers(transport, nodes, deadline_s=20.0)
        assert [later[node] for node in nodes[1:]] == ["answered"] * 4
        assert "still at work" in later[nodes[0]]
    stuck.set()
    time.sleep(0.2)
    assert answers(transport, nodes, deadline_s=20.0) == dict.fromkeys(nodes, "answered")


def test_a_device_that_hangs_costs_those_behind_it_nothing(stuck: threading.Event) -> None:
    transport, heard = one_worker_where(hangs=0, until=stuck)
    nodes = list(transport.nodes())
    assert answers(transport, nodes, deadline_s=0.5) == dict.fromkeys(nodes[1:], "answered")
    assert heard == [b"x"] * 3


def test_what_nobody_waits_for_any_more_never_begins(stuck: threading.Event) -> None:
    transport, heard = one_worker_where(hangs=1, until=stuck)
    nodes = list(transport.nodes())
    exchange = transport.exchange(Stage.FIT, dict.fromkeys(nodes, b"old"), deadline_s=20.0)
    assert next(exchange).node == nodes[0]
    exchange.close()
    stuck.set()
    assert answers(transport, nodes[2:], deadline_s=20.0) == {nodes[2]: "answered"}
    assert heard.count(b"old") <= 2
    assert heard[-1] == b"x"


@pytest.mark.parametrize("at_once", [None, 1, 2, 7])
def test_the_queue_of_a_simulation_is_not_in_its_devices_deadlines(at_once: int | None) -> None:
    def handler(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        time.sleep(0.05)
        return payload

    grid = LocalGrid(client_app(handler), devices=20, workers=1)
    transport = GridTransport(grid, SystemClock(), at_once=at_once)
    assert len(answers(transport, list(transport.nodes()), deadline_s=0.5)) == 20, "a second's work in half a second"


def test_requests_are_made_when_their_turn_comes() -> None:
    unanswered = most = 0

    def make(node: NodeId) -> bytes:
        nonlocal unanswered, most
        unanswered += 1
        most = max(most, unanswered)
        return b"x"

    app = client_app(lambda node, stage, payload: payload)
    transport = GridTransport(LocalGrid(app, devices=40, workers=2), SystemClock(), at_once=4)
    for _ in transport.exchange(Stage.FIT, Requests(list(transport.nodes()), make), deadline_s=20.0):
        unanswered -= 1
    assert most <= 4


def test_no_more_devices_than_workers_run_at_once() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def handler(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return payload

    transport = GridTransport(LocalGrid(client_app(handler), devices=12, workers=3), SystemClock())
    assert len(answers(transport, list(transport.nodes()), deadline_s=20.0)) == 12
    assert most == 3


def test_a_hung_device_does_not_hold_the_process() -> None:
    code = (
        "import threading\n"
        "from fedpeft.clock import SystemClock\n"
        "from fedpeft.flower import GridTransport, LocalGrid, client_app\n"
        "from fedpeft.round.transport import Stage\n"
        "app = client_app(lambda node, stage, payload: threading.Event().wait(300) and payload)\n"
        "grid = LocalGrid(app, devices=1, workers=1)\n"
        "transport = GridTransport(grid, SystemClock())\n"
        "print(list(transport.exchange(Stage.FIT, dict.fromkeys(transport.nodes(), b'x'), deadline_s=0.3)))\n"
        "grid.close()\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "[]\n"


def test_a_device_at_work_finishes_before_the_process_ends() -> None:
    """Interrupted: Python must not end a thread in the middle of torch's native code, which aborts the process."""
    code = (
        "import sys, time\n"
        "from fedpeft.clock import SystemClock\n"
        "from fedpeft.flower import GridTransport, LocalGrid, client_app\n"
        "from fedpeft.round.transport import Stage\n"
        "def work(node, stage, payload):\n"
        "    time.sleep(0.1 if node.partition else 1.5)\n"
        "    print('finished', node.partition, flush=True)\n"
        "    return payload\n"
        "transport = GridTransport(LocalGrid(client_app(work), devices=2, workers=2), SystemClock())\n"
        "for reply in transport.exchange(Stage.FIT, dict.fromkeys(transport.nodes(), b'x'), deadline_s=60):\n"
        "    sys.exit(130)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 130
    assert answer.stdout == "finished 1\nfinished 0\n"
