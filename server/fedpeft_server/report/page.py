"""report.html: one file that tells how a run went, opens from disk and asks the network for nothing.

Everything shown comes from the run directory; every string is escaped by the template. What the numbers
mean is said beside them, and so is what the run does not protect against.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.config import RunConfig
from fedpeft.files import write_file
from fedpeft.terminal import span
from fedpeft_server.report.budget import spent_of
from fedpeft_server.report.charts import dot_strip
from fedpeft_server.report.client_curves import client_curves
from fedpeft_server.report.confusion import mixups_of
from fedpeft_server.report.formats import count, number, perplexity, perplexity_of, share, size
from fedpeft_server.report.many_clients import MANY, spread_of
from fedpeft_server.report.round_charts import budget_chart, round_charts, withheld
from fedpeft_server.run.client_scores import read_client_scores
from fedpeft_server.run.privacy_statements import privacy_lines
from fedpeft_server.run.records import ClientRound, Comparison, RoundMetrics
from fedpeft_server.run.run_view import RunView, read_run
from fedpeft_server.run.verdict import comparison_facts, kept_row, verdict

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render", "write_report"]

LOSSES = 500
"""So many are listed, from the first round on: the page of a large run stays one that a browser opens at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTotals:
    """A client's, or a method's, part in the whole run."""

    name: str
    methods: str
    clients: int
    summed: int
    lost: int
    bytes_up: int
    bytes_down: int
    seconds_per_round: float


def write_report(path: Path) -> Path:
    """Renders the run at ``path`` into its ``report.html`` and returns that file.

    Raises:
        DataInvalid: ``path`` is no run directory.
        IntegrityFailed: one of its records cannot be read.
    """
    target = path / "report.html"
    write_file(target, render(read_run(path)).encode())
    return target


def render(view: RunView) -> str:
    """The page of one run, as HTML."""
    perplexities = view.summary is not None and view.summary.metric == "perplexity"
    config = view.config()
    parts = [part for row in view.rounds for part in row.clients]
    per_client = _tallies(parts, "client")
    spent = spent_of(view)
    return _template(perplexities).render(
        view=view,
        config=config,
        trained=sum(1 <= row.round <= config.rounds.count and not row.burnt for row in view.rounds),
        command=shlex.join(view.manifest.command),
        final=kept_row(view.rounds, config.rounds),
        words=config.task.record.compared == "perplexity",
        totals=_totals(view),
        charts=[*round_charts(view.rounds, config), *([budget_chart(spent)] if spent else [])],
        spent=spent,
        withheld=withheld(config),
        many=MANY,
        most_listed=LOSSES,
        comparison=_comparison(view),
        curves=client_curves(read_client_scores(view.path), view.rounds, config),
        mixups=mixups_of(view.summary.confusion, config.task.outputs) if view.summary else None,
        per_client=per_client,
        most_lost=sorted((one for one in per_client if one.lost), key=lambda one: -one.lost)[:10],
        per_method=_by_upload(_tallies(parts, "methods")),
        lost=[(row.round, part) for row in view.rounds for part in row.clients if part.state != "summed"],
        rejected=_strangers(view.rounds),
        aborted=[event for event in view.events if event.kind in ("round.aborted", "round.burnt")],
        planned={e.client: e.detail.get("plan", "") for e in view.events if e.kind == "device.planned"},
        skipped=Counter(item for row in view.rounds for item in row.skipped.items()),
        threats=_threats(config, view),
        promise=privacy_lines(view),
        verdict=verdict(view.rounds, config),
    )


@cache
def _template(perplexities: bool) -> "Template":
    """Compiled once per process; scores are perplexities or shares."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fedpeft_server.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=perplexity if perplexities else share)
    environment.filters.update(
        perplexity_of=perplexity_of, size=size, span=span, share=share, number=number, count=count
    )
    return environment.get_template("report.html")


def _longest(config: RunConfig) -> str:
    """How far a device can pull a coordinate, in words."""
    given = config.secagg.max_abs
    return "twice what the learning rates of a round add up to" if given == "auto" else f"{given:g}"


def _strangers(rounds: Sequence[RoundMetrics]) -> list[tuple[int, str, str]]:
    """Rejections of senders that have no entry of their own in the round."""
    return [
        (row.round, name, reason)
        for row in rounds
        for name, reason in row.rejected.items()
        if name not in {part.client for part in row.clients}
    ]


def _totals(view: RunView) -> dict[str, float]:
    rows = view.rounds
    up, down = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
    full = view.summary.bytes_full_parameters if view.summary else None
    invited = sum(row.devices_invited for row in rows)
    return {
        "up": up,
        "down": down,
        "saved": full / (up + down) if full and up + down else 0.0,
        "seconds": view.summary.seconds if view.summary else sum(row.seconds for row in rows),
        "lost": invited - sum(row.devices_survived for row in rows),
        "invited": invited,
    }


def _comparison(view: RunView) -> dict[str, object] | None:
    """Rows with their dots on one scale, and how much of the gap was closed; None without values."""
    rows = view.summary.comparison if view.summary else ()
    values = [value for row in rows for _, value in _marks(row) if value is not None]
    if not values:
        return None
    margin = (max(values) - min(values)) * 0.05 or 0.01
    low, high = min(values) - margin, max(values) + margin
    metric = "" if view.summary is None else view.summary.metric
    perplexities = metric == "perplexity"
    show = perplexity if perplexities else share
    return {
        "rows": [(row, dot_strip(_marks(row), low=low, high=high, show=show)) for row in rows],
        "gap_closed": _gap_closed(rows, lower_is_better=perplexities),
        "low": low,
        "high": high,
        "unit": {"perplexity": "tokens", "entity_f1": "words"}.get(metric, "examples"),
        "spread": spread_of(rows, lower_is_better=perplexities, show=show),
        "baselines": any(row.alone is not None or row.centralised is not None for row in rows),
        "facts": comparison_facts(rows, lower_is_better=perplexities),
    }


def _gap_closed(rows: Sequence[Comparison], *, lower_is_better: bool) -> float | None:
    whole = next((row for row in rows if row.client == "all"), None)
    if whole is None or whole.alone is None or whole.federated is None or whole.centralised is None:
        return None
    gap = whole.centralised - whole.alone
    return (whole.federated - whole.alone) / gap if (gap < 0 if lower_is_better else gap > 0) else None


def _marks(row: Comparison) -> list[tuple[str, float | None]]:
    """The federation last: it is drawn over the others."""
    return [("alone", row.alone), ("centralised", row.centralised), ("federated", row.federated)]


def _tallies(parts: Sequence[ClientRound], key: str) -> list[ClientTotals]:
    grouped: dict[str, list[ClientRound]] = {}
    for part in parts:
        grouped.setdefault(getattr(part, key), []).append(part)
    return [
        ClientTotals(
            name=name,
            methods=", ".join(dict.fromkeys(part.methods for part in group)),
            clients=len({part.client for part in group}),
            summed=sum(part.state == "summed" for part in group),
            lost=sum(part.state != "summed" for part in group),
            bytes_up=sum(part.bytes_up for part in group),
            bytes_down=sum(part.bytes_down for part in group),
            seconds_per_round=sum(part.seconds for part in group) / len(group),
        )
        for name, group in sorted(grouped.items())
    ]


def _by_upload(tallies: list[ClientTotals]) -> list[ClientTotals]:
    return sorted(tallies, key=lambda tally: -tally.bytes_up / (tally.summed + tally.lost))


def _threats(config: RunConfig, view: RunView) -> list[str]:
    """What this run, with this configuration, leaves open. Kept in step with docs/threat-model.md."""
    simulated = (
        "This was a simulation: all data lay on one machine. It shows what devices would send, and protects nobody."
    )
    secure = {
        "off": "Secure aggregation was off: the coordinator held every device's delta in the clear.",
        "fast": "Secure aggregation ran without its consistency round: a coordinator that lies about who dropped out "
        "could unmask a device.",
        "full": f"Secure aggregation holds while at most {config.secagg.corrupt_fraction:.0%} of the devices collude "
        "with the coordinator. A coordinator that may enrol devices of its own can exceed that.",
    }
    poisoning = (
        "The sum hides bad updates too: a device can pull the model by as much as the clip on its delta allows "
        f"(each coordinate at most {_longest(config)}), and a backdoor would not be noticed."
    )
    return [
        *([simulated] if "simulate" in view.manifest.command else []),
        secure[config.secagg.mode],
        *_promised(config),
        poisoning,
        "Whoever takes part learns the global adapter of every round.",
        "Device names, methods, timing and message sizes are visible to the coordinator.",
    ]


def _promised(config: RunConfig) -> list[str]:
    """What differential privacy leaves open; its statement stands by itself."""
    covered = {
        "none": "No differential privacy: the sums, and so the adapter, may reveal that an example was trained on.",
        "client": "Differential privacy hides one client's contribution, not that it took part, and not what a group "
        "of clients has in common.",
        "example": "Differential privacy hides one training example of one device, not what many of its examples have "
        "in common, nor how many there are.",
        "person": "Differential privacy hides one person of one device with all of their examples, not what many "
        "people have in common, nor how many there are.",
    }
    return [covered[config.privacy.unit]]
