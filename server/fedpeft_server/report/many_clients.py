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
WIDTH, HEIGHT, BASE, TOP = 330, 120, 100, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a metric differs between clients.

    Args:
        worst: the clients with the worst values, worst first.
        tied: how many others have the value of the last of these.
        histogram: how many clients have which value.
    """

    worst: tuple[Comparison, ...]
    tied: int
    histogram: Markup


def spread_of(rows: Sequence[Comparison], *, lower_is_better: bool, show: Format) -> Spread | None:
    """None for fewer clients than ``MANY``, which one table shows."""
    own = [(row.federated, row) for row in rows if row.client != "all" and row.federated is not None]
    if len(own) < MANY:
        return None
    ordered = [row for _, row in sorted(own, key=lambda pair: -pair[0] if lower_is_better else pair[0])]
    tied = sum(row.federated == ordered[WORST - 1].federated for row in ordered[WORST:])
    return Spread(worst=tuple(ordered[:WORST]), tied=tied, histogram=_histogram([value for value, _ in own], show))


def _histogram(values: Sequence[float], show: Format) -> Markup:
    low, high = min(values), max(values)
    bins = min(BINS, len(set(values)))  # of six examples each, say, only seven values can be
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    each = WIDTH / bins
    bar = Markup('<g><rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/><title>{}</title></g>')
    bars = [
        bar.format(
            i * each + 1,
            BASE - (BASE - TOP) * count / max(counts),
            each - 2,
            (BASE - TOP) * count / max(counts),
            f"{count} clients: {show(low + i * width)} to {show(low + (i + 1) * width)}",
        )
        for i, count in enumerate(counts)
    ]
    ends = Markup('<text x="0" y="{y}">{}</text><text x="{x}" y="{y}" class="end">{}</text>')
    most = Markup('<text x="{:.1f}" y="8" class="mid">{}</text>').format(
        min(max((counts.index(max(counts)) + 0.5) * each, 30), WIDTH - 30), f"{max(counts)} clients"
    )
    said = f"Histogram of {len(values)} clients from {show(low)} to {show(high)}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        WIDTH, HEIGHT, said, Markup("").join(bars), most, ends.format(show(low), show(high), x=WIDTH, y=HEIGHT - 6)
    )
