"""Ways to combine methods, or trained adapters: the second table of `fedpeft methods ls` and docs/methods.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["COMPOSITIONS", "Composition", "markdown_compositions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One way.

    Args:
        title: the field's name for it.
        formula: what it computes.
        paper: author and year.
        reach: how a user reaches it.
        exact: what the result is exactly, and what not.
    """

    title: str
    formula: str
    paper: str
    reach: str
    exact: str


_MERGE = "`fedpeft adapter merge A B --rule {} --out DIR`"

COMPOSITIONS: Mapping[str, Composition] = MappingProxyType(
    {
        "union": Composition(
            title="Union of methods",
            formula="every [adapter.METHOD] of the run, one on the other",
            paper="docs/design.md, section 3",
            reach="several sections in run.toml; each device trains those that it can",
            exact="each block has a secure sum of its own",
        ),
        "hierarchical": Composition(
            title="Hierarchical: another method a layer group",
            formula="METHOD_1 in layers [a, b], METHOD_2 in layers [c, d], ...",
            paper="He 2022 (unified view); Rueckle 2021 (layers)",
            reach="`layers = [first, last]` in each [adapter.METHOD]",
            exact="as each method",
        ),
        "hub": Composition(
            title="LoRAHub",
            formula="start + sum_i w_i (state_i - start), w by search without gradients",
            paper="Huang 2024",
            reach="`fedpeft adapter hub RUN RUN ... --data FEW.jsonl --out DIR`",
            exact="with LoRA the sum of the changes: the runs share A",
        ),
        "linear": Composition(
            title="Linear arithmetic",
            formula="sum_i w_i B_i A_i, factors added up",
            paper="Ilharco 2023; Zhang 2023 (PEM)",
            reach=_MERGE.format("linear"),
            exact="exact when the adapters share A (one run.seed); else as peft, with cross terms",
        ),
        "cat": Composition(
            title="Concatenation",
            formula="sum_i w_i B_i A_i, factors side by side",
            paper="peft",
            reach=_MERGE.format("cat"),
            exact="exact; the ranks add up",
        ),
        "svd": Composition(
            title="SVD",
            formula="the best rank-r approximation of sum_i w_i B_i A_i",
            paper="Eckart 1936; peft",
            reach=_MERGE.format("svd"),
            exact="best of its rank",
        ),
        "ties": Composition(
            title="TIES",
            formula="largest entries, elected sign, mean of those that agree",
            paper="Yadav 2023",
            reach=_MERGE.format("ties"),
            exact="as peft",
        ),
        "dare": Composition(
            title="DARE",
            formula="a random share of the entries, divided by it, then linear",
            paper="Yu 2024",
            reach=_MERGE.format("dare"),
            exact="in expectation",
        ),
    }
)
"""By the name of the command's option where it has one."""


def markdown_compositions() -> str:
    """The table of docs/methods.md."""
    lines = ["| Composition | Formula | Paper | Reached by | What is exact |", "| --- | --- | --- | --- | --- |"]
    for name, row in COMPOSITIONS.items():
        cells = (f"`{name}`: {row.title}", f"`{row.formula}`", row.paper, row.reach, row.exact)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
