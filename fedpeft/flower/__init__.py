"""fedpeft on Flower 1.41: the only package that imports ``flwr``.

A fedpeft message is one payload in one record; its bytes are the wire codec's (``fedpeft.wire``), never an array
format of Flower's. Read ``records``, then ``app`` (the ``ClientApp`` around a device's handler), ``grid`` (the
``Transport`` over any ``Grid``, and ``LocalGrid``, which runs virtual devices in this process and serialises every
message as the network would) and ``simulation``. A deployment adds ``superlink`` (the coordinator's half of the Fleet
protocol, in process) and ``fleet`` (the device's half); they are imported by their own names, being heavy.

Facts of Flower that this relies on are held by tests/test_flower.py and tests/flower.
"""
# ruff: noqa: E402 - what Flower is not to load must be said before it is imported

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")

from fedpeft.flower.deferred import defer_sql

defer_sql()

from fedpeft.flower.app import NodeContext, client_app
from fedpeft.flower.grid import GridTransport, LocalGrid
from fedpeft.flower.records import RECORD, STYPE, from_record, to_record
from fedpeft.flower.simulation import run_local, run_ray

__all__ = [
    "RECORD",
    "STYPE",
    "GridTransport",
    "LocalGrid",
    "NodeContext",
    "client_app",
    "from_record",
    "run_local",
    "run_ray",
    "to_record",
]
