"""The report's curves over the rounds: what was measured, what was moved, what was spent of the privacy.

Rounds evaluate ``rounds.eval_examples`` held-out examples of each device, the last evaluation all of them: another set,
so its value is a mark of its own and never the end of the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from fedpeft.config import RunConfig
from fedpeft_server.report.budget import Spent
from fedpeft_server.report.charts import Format, Series, line_chart
from fedpeft_server.report.formats import number, perplexity, perplexity_at, short_share, size
from fedpeft_server.run.records import RoundMetrics

__all__ = ["RoundChart", "budget_chart", "evaluates_all", "round_charts", "withheld"]

AFTER = "after each round; 0 is the state before training"
BY_OURS = ", over the releases, by fedpeft's accountant; what is charged is the larger of two accountants' figures"
Legend = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundChart:
    """A picture with what stands above it.

    Args:
        legend: (colour, name) of each curve; none for one alone.
        withheld: whether the run does not collect this, because it would be a release.
    """

    title: str
    note: str
    svg: Markup
    legend: Legend = ()
    withheld: bool = False


def round_charts(rows: Sequence[RoundMetrics], config: RunConfig) -> list[RoundChart]:
    """Of a run's committed rounds."""
    hidden = withheld(config)
    if hidden:
        measured = [RoundChart(title="Held-out loss", note=AFTER, svg=Markup(), withheld=True)]
    else:
        measured = [_held_out("loss", [row.loss for row in rows], rows, config, number)]
        if config.task.record.compared == "perplexity":
            values = [None if row.loss is None else perplexity_at(row.loss) for row in rows]
            measured.append(_held_out("perplexity", values, rows, config, perplexity))
        if any(row.accuracy is not None for row in rows):
            name = "next-token accuracy" if config.task.record.compared == "perplexity" else "accuracy"
            measured.append(_held_out(name, [row.accuracy for row in rows], rows, config, short_share, ceiling=1.0))
        names = dict.fromkeys(name for row in rows for name in row.metrics if "/" not in name)
        measured += [
            _held_out(
                name.replace("_", " "), [row.metrics.get(name) for row in rows], rows, config, short_share, ceiling=1.0
            )
            for name in names
        ]
    up, down = accumulate(row.bytes_up for row in rows), accumulate(row.bytes_down for row in rows)
    uploaded = Series(name="up", points=[(row.round, float(total)) for row, total in zip(rows, up, strict=True)])
    downloaded = Series(
        name="down", color=2, points=[(row.round, float(total)) for row, total in zip(rows, down, strict=True)]
    )
    moved = line_chart([uploaded, downloaded], label="Cumulative bytes over the rounds", show=size, zero=True)
    both: Legend = ((1, "up"), (2, "down"))
    return [*measured, RoundChart(title="Bytes moved", note="cumulative, all devices", svg=moved, legend=both)]


def budget_chart(spent: Spent) -> RoundChart:
    """Epsilon as it grew."""
    curve = Series(points=list(spent.curve), place=spent.counted)
    whose = BY_OURS if spent.unit == "client" else "; of the device with the largest, as it states it"
    return RoundChart(
        title="Privacy spent",
        note=f"epsilon at delta {spent.delta:g}, of one {spent.unit}{whose}",
        svg=line_chart([curve], label=f"Epsilon over the {spent.counted}s", show=number, zero=True),
    )


def withheld(config: RunConfig) -> bool:
    """Whether the run collects no loss and no accuracy, because they would be releases of their own."""
    unit = config.privacy.unit
    return unit in ("example", "person") or (unit == "client" and config.privacy.metrics != "noised")


def evaluates_all(row_round: int, config: RunConfig) -> bool:
    """Whether a round's evaluation is the last one, of all held-out examples, where the others took some."""
    return config.rounds.eval_examples > 0 and row_round > config.rounds.count


def _held_out(
    name: str,
    values: Sequence[float | None],
    rows: Sequence[RoundMetrics],
    config: RunConfig,
    show: Format,
    *,
    ceiling: float | None = None,
) -> RoundChart:
    # A row's evaluation is of the state that its round began with: the state after the round before.
    whole = _those(values, rows, config, whole=True)
    some = Series(points=_those(values, rows, config, whole=False), labelled=not whole)
    series = [some, Series(points=whole, color=2)] if whole else [some]
    legend: Legend = ((1, f"up to {config.rounds.eval_examples} examples per device"), (2, "all")) if whole else ()
    svg = line_chart(series, label=f"Held-out {name} over the rounds", show=show, ceiling=ceiling)
    return RoundChart(title=f"Held-out {name}", note=AFTER, svg=svg, legend=legend)


def _those(
    values: Sequence[float | None], rows: Sequence[RoundMetrics], config: RunConfig, *, whole: bool
) -> list[tuple[int, float | None]]:
    pairs = zip(rows, values, strict=True)
    return [(row.round - 1, value) for row, value in pairs if evaluates_all(row.round, config) is whole]
