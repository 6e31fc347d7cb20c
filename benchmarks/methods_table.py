"""The tables of benchmarks/methods.py in Markdown, from what benchmarks/results/methods.json holds.

    python benchmarks/methods_table.py

One table has all methods on both bases, one what a packed base changes. Step and memory are shares of full
fine-tuning's in the same run.
"""

import json
import typing
from collections.abc import Mapping
from pathlib import Path

__all__ = ["RESULTS", "lines_of"]

RESULTS = Path(__file__).parent / "results" / "methods.json"
Measured = dict[str, typing.Any]
_BASES = ("airlines", "docstrings")
_SCORES = {"airlines": "accuracy", "docstrings": "perplexity"}


def lines_of(known: Mapping[str, Measured]) -> list[str]:
    """What failed, then the tables; nothing for a table without its full fine-tuning.

    Args:
        known: the runs, by name; those of a table are ``TABLE: METHOD``.
    """
    lines = [f"| {name} | FAILED: {found['failed']} |" for name, found in known.items() if "failed" in found]
    bases = [base for base in _BASES if f"{base}: full" in known]
    if not bases:
        return lines
    methods = [name.partition(": ")[2] for name in known if name.partition(": ")[0] in bases]
    heads = [f"{base}: {_SCORES[base]} | step | memory | kB up" for base in bases]
    lines += [
        f"| Method | {' | '.join(heads)} |",
        f"| --- | {' | '.join(['---: | ---: | ---: | ---:'] * len(bases))} |",
    ]
    for method in dict.fromkeys(methods):
        cells = [_cells(known, base, base, method) for base in bases]
        lines.append(f"| {_named(method)} | {' | '.join(cells)} |")
    packed = [name.partition(": ")[2] for name in known if name.startswith("airlines nf4: ")]
    if packed and "airlines" in bases:
        lines += ["", "| On NF4, packed | accuracy | step | memory | kB up |", "| --- | ---: | ---: | ---: | ---: |"]
        lines += [f"| {_named(method)} | {_cells(known, 'airlines nf4', 'airlines', method)} |" for method in packed]
    return lines


def _cells(known: Mapping[str, Measured], table: str, of: str, method: str) -> str:
    """Score, step, memory and bytes of one training; dashes where the base has no such method."""
    found, full = known.get(f"{table}: {method}", {}), known[f"{of}: full"]
    if "step_s" not in found:
        return "- | - | - | -"
    score = f"{found['ppl']:.2f}" if "ppl" in found else f"{found['accuracy']:.1%}"
    step, memory = found["step_s"] / full["step_s"], found["peak_mb"] / full["peak_mb"]
    return f"{score} | {step:.2f} | {memory:.2f} | {found['bytes_up'] / 1e3:,.0f}"


def _named(method: str) -> str:
    return "full fine-tuning" if method == "full" else f"`{method}`"


if __name__ == "__main__":
    print("\n".join(lines_of(json.loads(RESULTS.read_text())["runs"])))
