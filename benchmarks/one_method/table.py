"""The tables of benchmarks/methods.py and banking77.py in Markdown, from what benchmarks/results holds.

    python benchmarks/one_method/table.py   # prints them, and puts them between their marks in docs/methods.md

Of methods.py one table has all methods on both bases, one what a packed base changes. Step and memory are shares of
full fine-tuning's in the same run.
"""

import json
import typing
from collections.abc import Mapping
from pathlib import Path

__all__ = ["BANKING", "DOCUMENT", "RESULTS", "lines_of", "lines_of_ranks", "with_tables"]

RESULTS = Path(__file__).parents[1] / "results" / "methods.json"
BANKING = Path(__file__).parents[1] / "results" / "banking77.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"
Measured = dict[str, typing.Any]
_INTRODUCTION = """\
Every method at its defaults and one rate after the same steps, none tuned (`python benchmarks/methods.py --full`, on a
shared machine): the airline tweets on MiniLM-L6 int8 (40 steps of 8 examples) and docstrings on SmolLM2-135M (8 steps
of 4). All train the class head too. Step is CPU time and memory the process's peak, both as shares of full
fine-tuning's in the same run. 64.1 % is the share of the largest class: in 40 steps at one rate most methods have not
left it, so read the table for cost, not for accuracy. CoDA does not start as the identity: its routers must be
learnt first.
"""
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


def lines_of_ranks(known: Mapping[str, Measured]) -> list[str]:
    """Full fine-tuning, the bottleneck adapter and every rank of LoRA: accuracy on BANKING77 and what was trained."""
    lines = ["| BANKING77, test | accuracy | trained | of all | steps |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in sorted(known, key=lambda name: (name.startswith("lora"), known[name]["trained"] * (name != "full"))):
        run, share = known[name], known[name]["trained"] / known["full"]["trained"]
        lines.append(f"| {name} | {run['accuracy']:.1%} | {run['trained']:,} | {share:.2%} | {run['steps']} |")
    return lines


def with_tables(text: str) -> str:
    """The document with what is known now between its marks, ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    methods = lines_of(_runs(RESULTS))
    tables = {
        "methods.py": [_INTRODUCTION, *methods] if methods else [],
        "banking77.py": lines_of_ranks(_runs(BANKING)),
    }
    for name, lines in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        text = before + begin + "".join(f"{line}\n" for line in lines) + end + after
    return text


def _runs(results: Path) -> dict[str, Measured]:
    found: dict[str, Measured] = json.loads(results.read_text(encoding="utf-8"))["runs"]
    return found


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
    print("\n".join([*lines_of(_runs(RESULTS)), "", *lines_of_ranks(_runs(BANKING))]))
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
