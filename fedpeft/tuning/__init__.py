"""Local training and evaluation on a device: one plain loop, bucketed batches, cached activations."""

from fedpeft.tuning.cache import ActivationCache, HiddenSource, JoinedCaches
from fedpeft.tuning.evaluate import Evaluation, evaluate
from fedpeft.tuning.private import PrivateOutcome, train_privately
from fedpeft.tuning.private_release import NoiseScale
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
