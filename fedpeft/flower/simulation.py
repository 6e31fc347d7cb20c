"""A coordinator against virtual devices: in this process, or on Flower's Ray engine."""

import threading
from collections.abc import Callable
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fedpeft.clock import SystemClock
from fedpeft.flower.grid import GridTransport, LocalGrid

__all__ = ["run_local", "run_ray"]

NODES_DEADLINE_S = 120.0
"""How long Flower's engine may take to register its virtual nodes."""


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
    """
    from flwr.simulation import run_simulation

    backend: dict[str, Any] = {
        "init_args": {"num_cpus": workers, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }

    def start(transport: GridTransport) -> None:
        clock, pause = SystemClock(), threading.Event()
        end = clock.monotonic_s() + NODES_DEADLINE_S
        while len(transport.nodes()) < devices and clock.monotonic_s() < end:
            pause.wait(0.1)  # Ray registers the nodes while the coordinator starts
        main(transport)

    run_simulation(
        _server_app(start, at_once=workers), app, num_supernodes=devices, backend_name="ray", backend_config=backend
    )


def _server_app(main: Callable[[GridTransport], None], *, at_once: int) -> ServerApp:
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        main(GridTransport(grid, SystemClock(), at_once=at_once))

    return app
