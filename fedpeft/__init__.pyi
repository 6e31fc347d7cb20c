"""The public names with their types, for editors and type checkers: at run time they are imported on first use."""

from fedpeft.api.adapters import Adapter as Adapter
from fedpeft.api.adapters import load_adapter as load_adapter
from fedpeft.api.attached import attach as attach
from fedpeft.api.callbacks import Callback as Callback
from fedpeft.api.callbacks import RoundResult as RoundResult
from fedpeft.api.callbacks import StopRun as StopRun
from fedpeft.api.data import data_check as data_check
from fedpeft.api.result import Result as Result
from fedpeft.api.result import open_run as open_run
from fedpeft.api.simulation import simulate as simulate
from fedpeft.api.sweep import sweep as sweep
from fedpeft.api.unlearning import unlearn as unlearn
from fedpeft.errors import FedpeftError as FedpeftError

__version__: str
