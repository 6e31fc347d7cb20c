"""Curves of single clients: of a simulation alone, for a coordinator of real devices learns none of them.

A few clients have a chart each, with the curve of all beside it. More are thin lines in one chart, with their median;
hundreds are the band between the worst and the best, and the band of the middle eight in ten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Protocol

from markupsafe import Markup

from fedpeft.config import RunConfig
from fedpeft_server.report.charts import Band, Format, Series, line_chart
from fedpeft_server.report.formats import number, perplexity, perplexity_at, short_share
from fedpeft_server.report.many_clients import MANY
from fedpeft_server.report.round_charts import evaluates_all
from fedpeft_server.run.records import ClientScore, RoundMetrics

__all__ = ["ClientCurves", "client_curves"]

FEW = 12
"""So many clients have a chart each."""

Points = list[tuple[int, float]]


class Draw(Protocol):
    """``line_chart`` of one metric."""

    def __call__(self, series: Sequence[Series], *, label: str, bands: Sequence[Band] = ()) -> Markup:
        """The picture."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCurves:
    """The charts, each as (title, note, picture).

    Args:
        metric: what they show: accuracy, perplexity or loss.
        few: whether each client has a chart.
        most: held-out examples of a client in a round; 0: all. A last evaluation of more is no part
            of a curve.
    """

    metric: str
    few: bool
    most: int
    charts: tuple[tuple[str, str, Markup], ...]


def client_curves(
    scores: Mapping[str, Sequence[ClientScore]], rows: Sequence[RoundMetrics], config: RunConfig
) -> ClientCurves | None:
    """None where nobody measured single clients.

    Args:
        scores: of each client, ascending by round.
        rows: what was committed; scores of other rounds are of attempts that nothing came of.
        config: of the run.
    """
    metric, committed = _metric(config), {row.round for row in rows}
    curves = {
        name: [
            (score.round - 1, y)
            for score in _of_one_set(own, config)
            if score.round in committed and (y := _value(score, metric)) is not None
        ]
        for name, own in sorted(scores.items())
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    show: Format = {"accuracy": short_share, "perplexity": perplexity}.get(metric, number)
    draw: Draw = partial(line_chart, show=show, ceiling=1.0 if metric == "accuracy" else None)
    charts = _each(curves, metric, draw, show) if len(curves) <= FEW else (_together(curves, metric, draw, show),)
    return ClientCurves(
        metric=metric,
        few=len(curves) <= FEW,
        most=config.rounds.eval_examples,
        charts=tuple(charts),
    )


def _of_one_set(own: Sequence[ClientScore], config: RunConfig) -> Sequence[ClientScore]:
    """Without the last evaluation where it took more examples than the rounds did."""
    usual = max((score.examples for score in own if not evaluates_all(score.round, config)), default=None)
    return [
        score for score in own if usual is None or score.examples <= usual or not evaluates_all(score.round, config)
    ]


def _metric(config: RunConfig) -> str:
    record = config.task.record
    return record.compared if record.compared == "perplexity" else "accuracy" if record.accuracy else "loss"


def _value(score: ClientScore, metric: str) -> float | None:
    if metric == "accuracy" or score.loss is None:
        return score.accuracy if metric == "accuracy" else None
    return perplexity_at(score.loss) if metric == "perplexity" else score.loss


def _each(curves: Mapping[str, Points], metric: str, draw: Draw, show: Format) -> list[tuple[str, str, Markup]]:
    middle = _middle(curves)
    charts = []
    for name, points in curves.items():
        lines = [Series(name="median of all clients", points=middle, thin=True), Series(points=points, joined=True)]
        charts.append(
            (name, f"{show(points[0][1])} to {show(points[-1][1])}", draw(lines, label=f"{metric} of {name}"))
        )
    return charts


def _together(curves: Mapping[str, Points], metric: str, draw: Draw, show: Format) -> tuple[str, str, Markup]:
    ends = sorted(((points[-1][1], name) for name, points in curves.items()), reverse=metric != "accuracy")
    note = "; ".join(
        f"{what} at the end: {name} {show(value)}" for what, (value, name) in (("worst", ends[0]), ("best", ends[-1]))
    )
    middle, label = Series(name="median", points=_middle(curves)), f"{metric} of {len(curves)} clients over the rounds"
    title = f"{len(curves)} clients and their median"
    if len(curves) < MANY:
        lines = [Series(name=name, points=points, thin=True, joined=True) for name, points in curves.items()]
        return title, note, draw([*lines, middle], label=label)
    by_round = _by_round(curves)
    outer = Band(points=[(x, min(ys), max(ys)) for x, ys in by_round.items()])
    inner = Band(points=[(x, *_middle_eight(ys)) for x, ys in by_round.items()])
    note += "; the dark band: eight in ten clients, the light one: all"
    return title, note, draw([middle], label=label, bands=[outer, inner])


def _middle(curves: Mapping[str, Points]) -> Points:
    return [(x, median(ys)) for x, ys in _by_round(curves).items()]


def _by_round(curves: Mapping[str, Points]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for points in curves.values():
        for x, y in points:
            found.setdefault(x, []).append(y)
    return dict(sorted(found.items()))


def _middle_eight(ys: Sequence[float]) -> tuple[float, float]:
    """The first and the last decile."""
    if len(ys) < 2:
        return ys[0], ys[0]
    deciles = quantiles(ys, n=10, method="inclusive")
    return deciles[0], deciles[-1]
