"""Clients by the hundred: their spread as a histogram, and the few at its worse end. The others are folded away."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedpeft_server.report.charts import Format
from fedpeft_server.run.records import Comparison

__all__ = ["MANY", "Spread", "spread_of"]

MANY = 100
"""From so many clients on a table of all is folded away."""
WORST = 10
BINS = 20
WIDTH, HEIGHT, BASE = 330, 120, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a metric differs between clients.

    Args:
        worst: the clients with the worst values, worst first.
        histogram: how many clients have which value.
    """

    worst: tuple[Comparison, ...]
    histogram: Markup


def spread_of(rows: Sequence[Comparison], *, lower_is_better: bool, show: Format) -> Spread | None:
    """None for fewer clients than ``MANY``, which one table shows."""
    own = [(row.federated, row) for row in rows if row.client != "all" and row.federated is not None]
    if len(own) < MANY:
        return None
    ordered = [row for _, row in sorted(own, key=lambda pair: -pair[0] if lower_is_better else pair[0])]
    return Spread(worst=tuple(ordered[:WORST]), histogram=_histogram([value for value, _ in own], show))


def _histogram(values: Sequence[float], show: Format) -> Markup:
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for value in values:
        counts[min(int((value - low) / width), BINS - 1)] += 1
    each = WIDTH / BINS
    bar = Markup('<g><rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/><title>{}</title></g>')
    bars = [
        bar.format(
            i * each + 1,
            BASE - (BASE - 8) * count / max(counts),
            each - 2,
            (BASE - 8) * count / max(counts),
            f"{count} clients: {show(low + i * width)} to {show(low + (i + 1) * width)}",
        )
        for i, count in enumerate(counts)
    ]
    ends = Markup('<text x="0" y="{y}">{}</text><text x="{x}" y="{y}" class="end">{}</text>')
    said = f"Histogram of {len(values)} clients from {show(low)} to {show(high)}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        WIDTH, HEIGHT, said, Markup("").join(bars), ends.format(show(low), show(high), x=WIDTH, y=HEIGHT - 6)
    )
