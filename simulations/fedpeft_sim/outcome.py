"""How a run ended, for a person: the comparison, the bytes, where things are, what to do next."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedpeft.terminal import quoted
from fedpeft_server.run.records import Summary
from fedpeft_server.run.run_view import read_run
from fedpeft_server.run.verdict import comparison_facts, verdict

__all__ = ["show_outcome"]

_COLUMNS = {
    "alone": "alone: own",
    "everywhere": "alone: all",
    "federated": "federated",
    "centralised": "centralised",
}
"""Field of a comparison -> its column. One client's model on its own examples has fewer questions to answer than the
federation's has; on everybody's both are asked the same."""


def show_outcome(console: Console, run: Path) -> None:
    """Print the end of a run from its directory alone."""
    view = read_run(run)
    summary = view.summary
    if summary is None:
        console.print(f"{run}: no summary; the run did not end", highlight=False, markup=False)
        return
    if summary.comparison:
        console.print(_table(summary))
        for fact in comparison_facts(summary.comparison, lower_is_better=summary.metric == "perplexity"):
            console.print(fact, highlight=False, markup=False)
    for fact in verdict(view.rounds, view.config()):
        console.print(fact, highlight=False, markup=False)
    if summary.privacy:
        console.print("privacy", style="bold")
        for fact in summary.privacy:
            console.print(f"  {fact}", highlight=False, markup=False)
    moved = summary.bytes_up + summary.bytes_down
    rounds = f"{summary.rounds} {'round' if summary.rounds == 1 else 'rounds'}"
    line = f"{moved / 1e6:.1f} MB moved in {rounds} ({summary.seconds:.0f} s)"
    if summary.bytes_full_parameters:
        ratio = summary.bytes_full_parameters / max(moved, 1)
        full = f"{summary.bytes_full_parameters / 1e9:.2f} GB, {ratio:.0f} times as much"
        line += f"; a federation of every parameter would have moved {full}"
    console.print(line, highlight=False, markup=False)
    console.print(f"adapter  {run / 'adapters' / 'final'}", highlight=False, markup=False, soft_wrap=True)
    console.print("next:", highlight=False, markup=False)
    compare = quoted("fedpeft", "simulate", "--resume", run, "--baselines")
    compared = _any_has(summary, "centralised")
    for command in (
        *(() if compared else (f"{compare}  # beside training alone, and on all data in one place",)),
        quoted("fedpeft", "runs", "show", run),
        quoted("fedpeft", "adapter", "inspect", run / "adapters" / "final"),
        f"see {quoted(run / 'report.html')} in a browser",
    ):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _table(summary: Summary) -> Table:
    perplexities = summary.metric == "perplexity"
    unit = {"perplexity": "tokens", "entity_f1": "words"}.get(summary.metric, "examples")
    better = ", lower is better" if perplexities else ""
    title = f"{summary.metric.capitalize().replace('_', ' ')} on held-out {unit}{better}"
    columns = {field: name for field, name in _COLUMNS.items() if _any_has(summary, field)}
    alone = f"alone: trained on its own examples; tested on its own, and on everybody's held-out {unit}"
    caption = alone if "alone" in columns else None
    table = Table(
        title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left", pad_edge=False
    )
    table.add_column("client")
    for column in (unit, *columns.values()):
        table.add_column(column, justify="right")
    for row in summary.comparison:
        values = [getattr(row, field) for field in columns]
        cells = ["" if one is None else f"{one:.4g}" if perplexities else f"{100 * one:.1f} %" for one in values]
        if row.client == "all" and "alone" in columns:
            cells[0] = ""  # nobody's own
        table.add_row(Text(row.client), str(row.examples), *cells, style="bold" if row.client == "all" else "")
    return table


def _any_has(summary: Summary, field: str) -> bool:
    return any(getattr(row, field) is not None for row in summary.comparison)
