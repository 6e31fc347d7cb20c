"""Local training and evaluation on a device: one plain loop, bucketed batches, cached activations."""

from fedpeft.tuning.cache import ActivationCache
from fedpeft.tuning.evaluate import Evaluation, evaluate
from fedpeft.tuning.train import LocalPlan, TrainOutcome, train

__all__ = ["ActivationCache", "Evaluation", "LocalPlan", "TrainOutcome", "evaluate", "train"]
