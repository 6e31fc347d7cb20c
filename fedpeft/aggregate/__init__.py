"""Block sums -> the next global state."""

from fedpeft.aggregate.between import between_rounds
from fedpeft.aggregate.mean import apply_mean

__all__ = ["apply_mean", "between_rounds"]
