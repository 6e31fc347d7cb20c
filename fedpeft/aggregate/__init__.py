"""Block sums -> the next global state."""

from fedpeft.aggregate.between_rounds import between_rounds
from fedpeft.aggregate.optimizers import ServerState, optimized
from fedpeft.aggregate.robust import assign_buckets
from fedpeft.aggregate.rules import proposal, robust_proposal, settled
from fedpeft.aggregate.sums import Individual, RoundSums

__all__ = [
    "Individual",
    "RoundSums",
    "ServerState",
    "assign_buckets",
    "between_rounds",
    "optimized",
    "proposal",
    "robust_proposal",
    "settled",
]
