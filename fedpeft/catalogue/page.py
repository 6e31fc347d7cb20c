"""The table of all methods in docs/methods.md (``make docs``)."""

from fedpeft.catalogue import ROWS

__all__ = ["markdown"]


def markdown() -> str:
    """The table of docs/methods.md."""
    head = ("Method", "Formula", "Paper", "Attaches to", "Under secure aggregation", "Per-example gradient")
    lines = [_line((*head, "Export", "Runs without fedpeft in")), _line(("---",) * (len(head) + 2))]
    for name, row in ROWS.items():
        cells = (row.formula, row.paper, row.attaches, row.summed, row.example_dp, row.export)
        lines.append(_line((f"`{name}`: {row.title}", f"`{cells[0]}`", *cells[1:], ", ".join(row.served_by) or "-")))
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
