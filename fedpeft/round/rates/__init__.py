"""The learning rates of a run: of each block from the table or run.toml, and what a run measures beside it."""

from fedpeft.round.rates.blocks import SGD_FACTOR, learning_rates, rates_told

__all__ = ["SGD_FACTOR", "learning_rates", "rates_told"]
