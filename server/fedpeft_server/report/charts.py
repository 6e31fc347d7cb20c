"""Small SVG charts as text: no script, no font, no network. Colours are the page's CSS variables.

Invariants: every number drawn is finite; every caller's string is escaped; a chart of nothing says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Band", "Series", "dot_strip", "line_chart", "ticks"]

_WIDTH, _HEIGHT = 340, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 62, 12, 24
_DRAWABLE = 1e100
"""A curve beyond this has diverged; drawing it would overflow the scale."""
_NARROWEST = 1e-250
"""A range below this counts as one value: steps through it would be denormal, and no two of them apart when printed."""
_MARKED = 60
"""Points beyond which a curve gets no dots: they would touch."""

Format = Callable[[float], str]
Place = Callable[[float], float]
"""From a value to a coordinate of the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve.

    Args:
        name: its name in the legend; empty when it is alone.
        points: (x, y) ascending in x; a y of None is a gap.
        color: 1 or 2, the page's ``--series-1`` or ``--series-2``.
        place: what a place on the x axis is.
        thin: one of many: a thin grey line without dots, whose name is its tooltip.
        joined: whether a gap is crossed by the line.
        labelled: whether its last value stands beside it.
    """

    name: str = ""
    points: Sequence[tuple[int, float | None]]
    color: int = 1
    place: str = "round"
    thin: bool = False
    joined: bool = False
    labelled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Between what many values lie: (x, low, high) ascending in x, all finite."""

    points: Sequence[tuple[int, float, float]]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    show: Format,
    zero: bool = False,
    ceiling: float | None = None,
    bands: Sequence[Band] = (),
) -> Markup:
    """Curves over rounds, as one <svg>.

    Args:
        series: one curve or a few.
        label: what a screen reader says.
        show: formats a y value.
        zero: whether the y axis must begin at 0.
        ceiling: a y value that cannot be passed, such as 1 for a share.
        bands: drawn below the curves.

    Returns:
        The markup; a sentence when there is no point to draw.
    """
    drawn = [(one, _finite(one.points)) for one in series]
    points = [point for _, kept in drawn for point in kept]
    if not points:
        return Markup('<p class="none">Nothing was recorded.</p>')
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    ys = [y for _, y in points] + [y for band in bands for _, *ends in band.points for y in ends]
    grid = ticks(min(0.0, *ys) if zero else min(ys), max(ys), ceiling)
    x_at = _scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    y_at = _scale(grid[0], grid[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(grid, y_at, show), _rounds_axis(x_low, x_high, x_at)]
    parts += [_band(band, x_at, y_at) for band in bands]
    taken: list[float] = []
    for one, kept in drawn:
        if kept and one.thin:
            parts.append(_thin(one, kept, x_at, y_at))
        elif kept:
            parts.append(_curve(one, kept, x_at, y_at, show))
            x, y = kept[-1]
            if one.labelled:
                parts.append(_end_label(one.color, show(y), x_at(x) + 8, y_at(y) + 4, taken))
    body = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(_WIDTH, _HEIGHT, label, body)


def dot_strip(values: Sequence[tuple[str, float | None]], *, low: float, high: float, show: Format) -> Markup:
    """One row of a comparison: a marker a value on a scale that all rows share.

    Args:
        values: (name, value), later ones drawn over earlier ones; the name is the marker's CSS class and tooltip.
        low: the scale's left end.
        high: its right end.
        show: formats a value for the tooltip.
    """
    x_at = _scale(low, high, 8, 332)
    marks = []
    for name, value in values:
        if value is not None and _drawable(value):
            mark = Markup('<circle class="mark {0}" cx="{1:.1f}" cy="10" r="5"><title>{0}: {2}</title></circle>')
            marks.append(mark.format(name, x_at(value), show(value)))
    line = Markup('<line class="grid" x1="8" x2="332" y1="10" y2="10"/>')
    return Markup('<svg class="strip" viewBox="0 0 340 20" aria-hidden="true">{}{}</svg>').format(
        line, Markup("").join(marks)
    )


def ticks(low: float, high: float, ceiling: float | None = None) -> tuple[float, ...]:
    """Three to six round numbers that span [low, high].

    Example:
        >>> ticks(0.62, 0.83)
        (0.6, 0.7, 0.8, 0.9)
    """
    if high - low <= 1e-9 * abs(high + low) or high - low < _NARROWEST:
        margin = abs(low + high) / 20
        margin = margin if margin > _NARROWEST else 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if ceiling is not None:
        last = min(last, max(first + 1, math.floor(ceiling / step + 1e-9)))
    return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))


def _grid(grid: Sequence[float], y_at: Place, show: Format) -> Markup:
    row = Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{}" y="{t:.1f}" class="end">{}</text>'
    )
    labels = [show(tick) for tick in grid]
    if len(set(labels)) < len(labels) and all(map(_is_number, labels)):  # of a narrow range three digits are too few
        labels = [f"{tick:.6g}" for tick in grid]
    return Markup("").join(
        row.format(_LEFT, _WIDTH - _RIGHT, _LEFT - 6, label, y=y_at(tick), t=y_at(tick) + 4)
        for tick, label in zip(grid, labels, strict=True)
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rounds_axis(low: int, high: int, x_at: Place) -> Markup:
    rough = max(1, (high - low) / 6)
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    shown = list(range(low, high + 1, step))
    row = Markup('<text x="{:.1f}" y="{}" class="mid">{}</text>')
    return Markup("").join(row.format(x_at(x), _HEIGHT - 6, x) for x in shown)


def _curve(one: Series, kept: Sequence[tuple[int, float]], x_at: Place, y_at: Place, show: Format) -> Markup:
    runs: list[list[str]] = [[]]
    for x, y in one.points:
        if y is None or not _drawable(y):
            runs += [] if one.joined else [[]]
        else:
            runs[-1].append(f"{x_at(x):.1f},{y_at(y):.1f}")
    lines = [Markup('<polyline class="line s{}" points="{}"/>').format(one.color, " ".join(run)) for run in runs if run]
    radius = 2.5 if len(kept) <= _MARKED else 0.01
    name = f"{one.name}, " if one.name else ""
    spot = Markup('<g><circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="8"/>{dot}<title>{tip}</title></g>')
    dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>')
    spots = [
        spot.format(
            x=x_at(x),
            y=y_at(y),
            dot=dot.format(one.color, x_at(x), y_at(y), radius),
            tip=f"{name}{one.place} {x}: {show(y)}",
        )
        for x, y in kept
    ]
    return Markup("").join([*lines, *spots])


def _thin(one: Series, kept: Sequence[tuple[int, float]], x_at: Place, y_at: Place) -> Markup:
    line = " ".join(f"{x_at(x):.0f},{y_at(y):.1f}" for x, y in kept)
    return Markup('<polyline class="thin" points="{}"><title>{}</title></polyline>').format(line, one.name)


def _band(band: Band, x_at: Place, y_at: Place) -> Markup:
    upper = [f"{x_at(x):.1f},{y_at(high):.1f}" for x, _, high in band.points]
    lower = [f"{x_at(x):.1f},{y_at(low):.1f}" for x, low, _ in reversed(band.points)]
    return Markup('<polygon class="band" points="{}"/>').format(" ".join([*upper, *lower]))


def _end_label(color: int, text: str, x: float, y: float, taken: list[float]) -> Markup:
    """The last value beside its point, moved to where no other label stands."""
    while any(abs(y - other) < 13 for other in taken):
        y += 1 if y < _HEIGHT / 2 else -1
    taken.append(y)
    return Markup('<text x="{:.1f}" y="{:.1f}" class="last s{}">{}</text>').format(x, y, color, text)


def _scale(low: float, high: float, start: float, end: float) -> Place:
    """Maps [low, high] to [start, end]; the middle when the interval is a point."""
    if high <= low:
        return lambda _value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _finite(points: Sequence[tuple[int, float | None]]) -> list[tuple[int, float]]:
    return [(x, y) for x, y in points if y is not None and _drawable(y)]


def _drawable(y: float) -> bool:
    return abs(y) < _DRAWABLE  # False for NaN
