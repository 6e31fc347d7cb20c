"""How a run ended, for a person: the comparison, the bytes, where things are, what to do next."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedpeft_server.run.run_view import read_run
from fedpeft_server.run.verdict import verdict

__all__ = ["show_outcome"]


def show_outcome(console: Console, run: Path) -> None:
    """Print the end of a run from its directory alone."""
    view = read_run(run)
    summary = view.summary
    if summary is None:
        console.print(f"{run}: no summary; the run did not end", highlight=False, markup=False)
        return
    if summary.comparison:
        table = Table(title="Accuracy on held-out examples", title_justify="left", title_style="bold")
        table.add_column("client")
        for column in ("examples", "alone", "federated", "centralised"):
            table.add_column(column, justify="right")
        for row in summary.comparison:
            shares = (row.alone, row.federated, row.centralised)
            cells = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
            table.add_row(Text(row.client), str(row.examples), *cells, style="bold" if row.client == "all" else "")
        console.print(table)
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
    for command in (
        shlex.join(["fedpeft", "runs", "show", str(run)]),
        shlex.join(["fedpeft", "adapter", "inspect", str(run / "adapters" / "final")]),
        f"see {shlex.quote(str(run / 'report.html'))} in a browser",
    ):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
