"""Block sums -> the next global state."""

from fedpeft.aggregate.mean import apply_mean

__all__ = ["apply_mean"]
