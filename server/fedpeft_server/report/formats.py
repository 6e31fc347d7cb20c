"""How the report says numbers."""

import math

__all__ = ["count", "number", "perplexity", "perplexity_at", "perplexity_of", "share", "short_share", "size"]

_LARGEST_LOSS = 50.0
"""Nats a token; its exponential still fits a table."""


def size(value: float) -> str:
    """Bytes in decimal units: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def share(value: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if value is None else f"{value * 100:.1f} %"


def perplexity(value: float | None) -> str:
    """A perplexity, or a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def perplexity_at(loss: float) -> float:
    """The perplexity of a loss in nats per token; one that is beyond any table is cut."""
    return math.exp(min(loss, _LARGEST_LOSS))


def perplexity_of(loss: float | None) -> str:
    """The same as text, or a dash where there is none."""
    return perplexity(None if loss is None else perplexity_at(loss))


def short_share(value: float) -> str:
    """A share without a needless zero: 85 %, 83.4 %."""
    return f"{value * 100:.1f}".removesuffix(".0") + " %"


def number(value: float | None) -> str:
    """Three digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def count(value: float) -> str:
    """A whole number in groups of three, by thin spaces."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
