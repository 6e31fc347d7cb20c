"""Flower and peft: FedAvg of A, B and the head as FlowerTune writes it, on Flower's ServerApp strategy and Message API.

All clients take turns in this process: Flower's own ``FedAvg.start`` drives ``grid.InTurn``, which counts the bytes.
No secure aggregation, no TLS.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.suite.grid import InTurn
from benchmarks.suite.plain_peft import PlainClient, rate_of_round

__all__ = ["run"]


def client_app(client: PlainClient, rate: float) -> ClientApp:
    """FlowerTune's client: load, train, send the adapter and the number of examples; and evaluate likewise."""
    app = ClientApp()

    def loaded(message: Message, context: Context) -> str:
        arrays = message.content.array_records["arrays"]
        client.load({name: value.numpy() for name, value in arrays.items()})
        return client.names[int(context.node_config["partition-id"])]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        name, round_id = loaded(message, context), int(message.content.config_records["config"]["server-round"])
        count = client.fit(name, round_id, rate_of_round(rate, round_id, client.cell["rounds"]))
        metrics = MetricRecord({"num-examples": count})
        return Message(RecordDict({"arrays": record_of(client.arrays()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        loss, right, count = client.score(loaded(message, context), everything=False)
        metrics = MetricRecord({"loss": loss / count, "accuracy": right / count, "num-examples": count})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def record_of(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    """As Flower sends them."""
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def run(folder: Path, *, rate: float, seed: int) -> dict[str, Any]:
    """FedAvg over the cell of the folder; 0 is FlowerTune's rate. What travelled, what it cost, each client's sums."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    client = PlainClient(folder, seed)
    start = {name: client.score(name, everything=True) for name in client.names} if client.writes else None
    grid = InTurn(client_app(client, rate), len(client.names))
    began = time.process_time()
    result = FedAvg().start(
        grid, initial_arrays=record_of(client.arrays()), num_rounds=client.cell["rounds"], train_config=ConfigRecord()
    )
    spent = time.process_time() - began
    client.load({name: value.numpy() for name, value in result.arrays.items()})
    curve = [
        {"loss": float(one["loss"]), "accuracy": float(one["accuracy"])}  # type: ignore[arg-type]
        for _, one in sorted(result.evaluate_metrics_clientapp.items())
    ]
    return {
        "start": start,
        "end": {name: client.score(name, everything=True) for name in client.names},
        "curve": curve,
        "bytes_up": grid.bytes_up,
        "bytes_down": grid.bytes_down,
        "cpu_s": spent,
    }
