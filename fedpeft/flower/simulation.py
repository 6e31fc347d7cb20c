"""A coordinator against virtual devices: in this process, or on Flower's Ray engine."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fedpeft.clock import SystemClock
from fedpeft.errors import ResourceMissing, said_by
from fedpeft.flower.grid import GridTransport, LocalGrid
from fedpeft.interrupts import undisturbed

__all__ = ["run_local", "run_ray"]

NODES_DEADLINE_S = 120.0
"""How long Flower's engine may take to register its virtual nodes."""
WAIT_S = 0.1
"""Between two looks at whether something has happened."""
KILLED_S = 5.0
"""How long a killed process may take to end; one that the disk holds ends later."""
ACTOR = "ray::ClientApp"
"""How Linux calls a process in which Ray computes devices: it keeps fifteen characters of its name."""


def run_local(app: ClientApp, main: Callable[[GridTransport], None], *, devices: int, workers: int) -> None:
    """Run a coordinator against virtual devices in this process, through a ServerApp on a LocalGrid."""
    grid = LocalGrid(app, devices=devices, workers=workers)
    try:
        context = Context(run_id=1, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config={})
        _server_app(main, at_once=2 * workers)(grid, context)  # one more each, so that no worker waits for us
    finally:
        grid.close()


def run_ray(app: ClientApp, main: Callable[[GridTransport], None], *, devices: int, workers: int) -> None:
    """Run a coordinator against virtual devices on Ray, through Flower's own simulation engine.

    ``app`` travels to Ray's actors, so its handler must be built from picklable parts only (Ray's doing).

    The engine has a thread of its own: Flower and Ray turn what an interrupt raises into errors of their own, and so
    it reaches this thread alone. The first one ends the exchange that is going on and waits for what the coordinator
    does then; a second one waits for nothing. Either way no actor of Ray's is left to write into the devices' folders.

    Raises:
        KeyboardInterrupt: as it came.
    """
    interrupted, ended = threading.Event(), threading.Event()
    claimed = threading.Lock()  # by the engine as it begins, or by an interrupt before that: then it never does
    failures: list[BaseException] = []

    def coordinate(transport: GridTransport) -> None:
        try:
            _wait_for_nodes(transport, devices, interrupted)
            main(transport)
        except BaseException as error:  # raised by the thread that waits for it
            failures.append(error)
        finally:
            ended.set()

    def engine() -> None:
        if not claimed.acquire(blocking=False):
            return
        try:
            coordinator = _server_app(coordinate, at_once=workers, interrupted=interrupted)
            _run_engine(coordinator, app, devices, workers)
        except BaseException as error:  # Ray's; what the coordinator raised was kept before
            failures.append(_no_engine(error))
        finally:
            ended.set()

    thread = threading.Thread(target=engine, name="ray", daemon=True)  # and so are the threads that Flower starts
    try:
        thread.start()  # returns when the thread is at work: an interrupt may come before
        while thread.is_alive():
            thread.join(WAIT_S)
    except KeyboardInterrupt:
        interrupted.set()
        if claimed.acquire(blocking=False):
            raise
        try:
            while not ended.wait(WAIT_S):
                pass
        finally:
            with undisturbed():
                _end_actors()
        raise
    if failures:
        raise failures[0]


def _wait_for_nodes(transport: GridTransport, devices: int, interrupted: threading.Event) -> None:
    """Ray registers the nodes while the coordinator starts."""
    clock = SystemClock()
    end = clock.monotonic_s() + NODES_DEADLINE_S
    while len(transport.nodes()) < devices and clock.monotonic_s() < end and not interrupted.wait(WAIT_S):
        pass


def _run_engine(coordinator: ServerApp, app: ClientApp, devices: int, workers: int) -> None:
    from flwr.simulation import run_simulation

    backend: dict[str, Any] = {
        "init_args": {
            "num_cpus": workers,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,  # it warns that it leaves SIGTERM to us
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # what goes wrong is raised or in the devices' replies; it logs tracebacks
    try:
        run_simulation(coordinator, app, num_supernodes=devices, backend_name="ray", backend_config=backend)
    finally:
        logger.setLevel(before)


def _no_engine(error: BaseException) -> ResourceMissing:
    first = error  # Flower wraps what Ray said, twice
    while first.__cause__ is not None:
        first = first.__cause__
    return ResourceMissing(
        f"Expected Flower's engine to carry the run on Ray, found: {said_by(first)}. Resume it when the machine is "
        "less busy, or start it anew with --engine local."
    )


def _end_actors() -> None:
    """Kill the processes in which Ray's devices compute; its others end with this process."""
    import psutil

    killed: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith(ACTOR):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=KILLED_S)  # until then it may still write


def _server_app(
    main: Callable[[GridTransport], None], *, at_once: int, interrupted: threading.Event | None = None
) -> ServerApp:
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        main(GridTransport(grid, SystemClock(), at_once=at_once, interrupted=interrupted))

    return app
