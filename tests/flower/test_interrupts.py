"""Ctrl-C while an engine carries a run in a thread of its own; tests/e2e/test_ray_interrupt.py asks the real one."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp

from fedpeft.errors import ResourceMissing
from fedpeft.flower import GridTransport, LocalGrid, NodeContext, client_app, run_ray, simulation
from fedpeft.round.transport import Stage

Coordinator = Callable[[GridTransport], None]


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A process that was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()  # lets the hung threads end


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, stuck: threading.Event) -> Callable[[Coordinator], None]:
    """Flower's engine without Ray: the same ServerApp, on devices of this process that never answer."""

    def never(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        stuck.wait(60)
        return payload

    def carry(coordinator: ServerApp, app: ClientApp, devices: int, workers: int) -> None:
        context = Context(run_id=1, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config={})
        coordinator(LocalGrid(app, devices=devices, workers=workers), context)

    monkeypatch.setattr(simulation, "_run_engine", carry)
    return lambda main: run_ray(client_app(never), main, devices=2, workers=1)


def press_when(ready: threading.Event, times: int = 1) -> None:
    """Ctrl-C, so often, once the coordinator is at work."""

    def press() -> None:
        ready.wait(30)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    threading.Thread(target=press, daemon=True).start()


def test_the_first_ctrl_c_ends_the_exchange_and_waits_for_what_the_coordinator_does_then(
    engine: Callable[[Coordinator], None],
) -> None:
    ready, done = threading.Event(), list[str]()

    def main(transport: GridTransport) -> None:
        try:
            ready.set()
            list(transport.exchange(Stage.FIT, dict.fromkeys(transport.nodes(), b"x"), deadline_s=60))
        finally:
            time.sleep(0.2)
            done.append("kept what was committed")

    press_when(ready)
    with pytest.raises(KeyboardInterrupt):
        engine(main)
    assert done == ["kept what was committed"]


@pytest.mark.parametrize("started", [True, False], ids=["it works", "it has not begun"])
def test_a_ctrl_c_while_the_engine_starts_waits_for_what_has_begun_alone(
    started: bool, engine: Callable[[Coordinator], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Thread.start`` waits for the thread, and an interrupt can end that wait, or come before there is a thread."""
    ready, done = threading.Event(), list[str]()
    engines, real = list[threading.Thread](), threading.Thread

    class Interrupted(real):  # type: ignore[misc, valid-type]
        def start(self) -> None:
            if self.name != "ray":
                super().start()
                return
            engines.append(self)
            if started:
                super().start()
                assert ready.wait(30)
            raise KeyboardInterrupt

    def main(transport: GridTransport) -> None:
        ready.set()
        try:
            list(transport.exchange(Stage.FIT, dict.fromkeys(transport.nodes(), b"x"), deadline_s=60))
        finally:
            time.sleep(0.2)
            done.append("kept what was committed")

    monkeypatch.setattr(threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine(main)
    assert done == ["kept what was committed"] * started
    if not started:  # a thread that the system had made already finds that it is not to begin
        real.start(engines[0])
        engines[0].join(30)
        assert not engines[0].is_alive()
        assert not ready.is_set()


def test_a_second_ctrl_c_waits_for_nothing(engine: Callable[[Coordinator], None], stuck: threading.Event) -> None:
    ready = threading.Event()

    def main(transport: GridTransport) -> None:
        ready.set()
        stuck.wait(60)  # no exchange that could be ended

    press_when(ready, times=2)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine(main)
    assert time.monotonic() - begun < 30


def test_what_a_coordinator_raises_is_raised_as_it_is(engine: Callable[[Coordinator], None]) -> None:
    def main(transport: GridTransport) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        engine(main)


def test_an_engine_that_does_not_start_is_said_with_its_first_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        try:
            raise OSError("the node timed out during startup")
        except OSError as error:
            raise RuntimeError("An error was encountered. Ending simulation.") from error

    monkeypatch.setattr(simulation, "_run_engine", fails)
    with pytest.raises(ResourceMissing, match="found: the node timed out during startup"):
        run_ray(client_app(lambda node, stage, payload: payload), lambda transport: None, devices=2, workers=1)
