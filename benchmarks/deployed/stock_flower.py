"""The peer of `benchmarks/deployment.py`: Flower 1.41 as it comes, with as many devices.

One SuperLink, one SuperNode a device, FedAvg over one float32 array and a round that trains nothing; every process
and port of our own, all of it on loopback without TLS, which only helps it. ``rounds`` returns each round's seconds.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "stock"
version = "1.0.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
rounds = 1
devices = 1
size = 1
times = ""
"""
SERVER = """
import json, time
from pathlib import Path
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

class Timed(FedAvg):
    starts = []
    def configure_train(self, *arguments, **options):
        self.starts.append(time.monotonic())
        return super().configure_train(*arguments, **options)

@app.main()
def main(grid, context):
    config = context.run_config
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=config["devices"],
                     min_available_nodes=config["devices"])
    start = ArrayRecord([np.zeros(config["size"], np.float32)])
    strategy.start(grid=grid, initial_arrays=start, num_rounds=config["rounds"])
    times = np.diff([*strategy.starts, time.monotonic()]).tolist()
    Path(config["times"]).write_text(json.dumps(times))
"""
CLIENT = """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    arrays = ArrayRecord([array + 1 for array in message.content["arrays"].to_numpy_ndarrays()])
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)
"""


def rounds(folder: Path, *, devices: int, count: int, size: int, within_s: float = 900.0) -> list[float]:
    """Seconds of each round of a stock federation.

    Args:
        folder: empty; logs stay there.
        devices: SuperNodes.
        count: rounds.
        size: float32 values that travel each way.
        within_s: after this the peer is given up.

    Raises:
        RuntimeError: it did not end in time; names the log.
    """
    app, home, times = folder / "app", folder / "home", folder / "times.json"
    (app / "stock").mkdir(parents=True)
    home.mkdir()
    for name, text in (("pyproject.toml", PROJECT), ("stock/server.py", SERVER), ("stock/client.py", CLIENT)):
        (app / name).write_text(text)
    (app / "stock" / "__init__.py").touch()
    link, *nodes = _free_ports(devices + 1)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    tools = Path(sys.executable).parent
    environment = {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    processes = []

    def start(name: str, *command: object) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [str(tools / name.partition("@")[0]), *map(str, command)],
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                    cwd=folder,
                )
            )

    try:
        start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", link)
        _until(lambda: _open(link), 60)
        for number, port in enumerate(nodes):
            start(f"flower-supernode@{number}", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", port)
        settings = f'rounds={count} devices={devices} size={size} times="{times}"'
        start("flwr", "run", app, "bench", "--run-config", settings, "--stream")
        _until(times.exists, within_s)
        found: list[float] = json.loads(times.read_text())
        return found
    except TimeoutError as error:
        raise RuntimeError(f"stock Flower did not finish {count} rounds in {within_s:.0f} s; see {folder}") from error
    finally:
        for process in reversed(processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _until(true, within_s: float) -> None:
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)
