"""Local training and evaluation on a device: one plain loop, bucketed batches, cached activations."""

from fedpeft.tuning.cache import ActivationCache, HiddenSource, JoinedCaches
from fedpeft.tuning.dp_sgd import PrivateOutcome, train_privately
from fedpeft.tuning.dp_sgd_mechanism import NoiseScale
from fedpeft.tuning.evaluate import Evaluation, evaluate
from fedpeft.tuning.train import LocalPlan, TrainOutcome, train

__all__ = [
    "ActivationCache",
    "Evaluation",
    "HiddenSource",
    "JoinedCaches",
    "LocalPlan",
    "NoiseScale",
    "PrivateOutcome",
    "TrainOutcome",
    "evaluate",
    "train",
    "train_privately",
]
