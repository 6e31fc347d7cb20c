"""The Python API (docs/python.md): what ``import fedpeft`` offers, and what the commands call.

Nothing here prints unless asked, exits, or changes the process; whatever a user can cause is a ``FedpeftError`` with
the text that the command line shows.
"""

from fedpeft.api.adapters import Adapter, load_adapter
from fedpeft.api.callbacks import Callback, RoundResult, StopRun
from fedpeft.api.data import data_check
from fedpeft.api.result import Result, open_run
from fedpeft.api.simulation import simulate
from fedpeft.errors import FedpeftError

__all__ = [
    "Adapter",
    "Callback",
    "FedpeftError",
    "Result",
    "RoundResult",
    "StopRun",
    "data_check",
    "load_adapter",
    "open_run",
    "simulate",
]
