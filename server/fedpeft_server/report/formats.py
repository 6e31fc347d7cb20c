"""How the report says numbers."""

__all__ = ["count", "number", "perplexity", "share", "short_share", "size"]


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


def short_share(value: float) -> str:
    """A share without a needless zero: 85 %, 83.4 %."""
    return f"{value * 100:.1f}".removesuffix(".0") + " %"


def number(value: float | None) -> str:
    """Three digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def count(value: float) -> str:
    """A whole number in groups of three, by thin spaces."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
