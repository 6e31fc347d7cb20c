"""The methods that fedpeft has, one row each: what `fedpeft methods ls` and docs/methods.md say comes from here.

To add a method: its file and its line in ``fedpeft.methods.union.METHODS``, a function in
``fedpeft.planner.placement``, and a row here. Tests hold the three together, and docs/methods.md to the rows.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.planner.additive_rows import ADDITIVE_ROWS, MIXED_ROWS
from fedpeft.planner.method_row import MethodRow
from fedpeft.planner.prompt_rows import PROMPT_ROWS

__all__ = ["CATALOGUE", "MethodRow", "markdown"]


CATALOGUE: Mapping[str, MethodRow] = MappingProxyType(
    {
        "lora": MethodRow(
            title="LoRA in column tiers, shared frozen A",
            formula="W x + b + scale * B A x",
            paper="Hu 2021; frozen A: Sun 2024 (FFA-LoRA)",
            attaches="chosen matrices (q, k, v, o, up, down, gate) of the adapted layers",
            summed="exact: A is shared and frozen, so the mean of B is the mean of dW over any mix of ranks",
            example_dp="outer product of (A x) and the output's gradient",
            export="PEFT LoRA of the full rank",
            served_by=("peft", "vLLM", "llama.cpp"),
        ),
        "dora": MethodRow(
            title="DoRA: magnitude and direction",
            formula="(norm(W) + delta) * (W + scale * B A) / norm(W + scale * B A)",
            paper="Liu 2024",
            attaches="chosen matrices of the adapted layers",
            summed="the mean of B and of the magnitudes; the matrix is not linear in them together",
            example_dp="outer product of (A x) and the output's gradient; product of output and gradient",
            export="PEFT LoRA with use_dora; beside another low-rank method in union.safetensors only",
            served_by=("peft",),
        ),
        "adalora": MethodRow(
            title="AdaLoRA: SVD form, pruned by importance",
            formula="W x + b + scale * P diag(l * mask) Q x",
            paper="Zhang 2023",
            attaches="chosen matrices of the adapted layers",
            summed="the mean of P, l and Q; importance is averaged in a block of its own, the coordinator prunes by it",
            example_dp="outer products of each factor's input and its output's gradient; importance is not per example",
            export="PEFT LoRA of the highest rank, l in B",
            served_by=("peft", "vLLM", "llama.cpp"),
        ),
        "dylora": MethodRow(
            title="DyLoRA: good at every rank",
            formula="W x + b + scale * B[:, :k] A[:k] x, k drawn each step",
            paper="Valipour 2023",
            attaches="chosen matrices of the adapted layers",
            summed="exact: A is shared and frozen",
            example_dp="outer product of (A x) and the output's gradient",
            export="PEFT LoRA; its first k ranks are the adapter of rank k",
            served_by=("peft", "vLLM", "llama.cpp"),
        ),
        "relora": MethodRow(
            title="ReLoRA: low-rank changes that add up",
            formula="W x + b + scale * (B_1 A_1 + ... + B_n A_n) x, one B_i a cycle",
            paper="Lialin 2024",
            attaches="chosen matrices of the adapted layers",
            summed="exact: every A is shared and frozen, earlier products stand",
            example_dp="outer product of (A_i x) and the output's gradient",
            export="PEFT LoRA of rank n r",
            served_by=("peft", "vLLM", "llama.cpp"),
        ),
        "qalora": MethodRow(
            title="QA-LoRA: merges into an int4-g32 base",
            formula="W x + b + scale * B A p(x), p the sums of 32 neighbouring inputs",
            paper="Xu 2024",
            attaches="chosen matrices of the adapted layers whose inputs are a multiple of 32",
            summed="exact: A is shared and frozen",
            example_dp="outer product of (A p(x)) and the output's gradient",
            export="PEFT LoRA with A's columns repeated",
            served_by=("peft", "vLLM", "llama.cpp"),
        ),
        "vera": MethodRow(
            title="VeRA: one shared random pair",
            formula="W x + b * B (d * A x)",
            paper="Kopiczko 2024",
            attaches="chosen matrices of the adapted layers; A and B come from the seed and are never sent",
            summed="the mean of d and of b; the change is not linear in them together",
            example_dp="products of each vector's input and gradient summed over tokens",
            export="PEFT VERA with its projections; beside a low-rank method in union.safetensors only",
            served_by=("peft",),
        ),
        "diffpruning": MethodRow(
            title="Diff pruning: an L0-relaxed mask",
            formula="(W + z * d) x + b, z a stretched sigmoid gate in [0, 1]",
            paper="Guo 2021; gates: Louizos 2018",
            attaches="every weight of the chosen matrices of the adapted layers",
            summed="the mean of d and of the gates' logits; the coordinator fixes the mask after one round",
            example_dp="outer product of the matrix's input and its output's gradient, times the gate",
            export="union.safetensors only",
            served_by=(),
        ),
        "fish": MethodRow(
            title="FISH mask: the weights of most Fisher information",
            formula="(W + D) x + b, D zero but at k picked places",
            paper="Sung 2021",
            attaches="k weights of the chosen matrices of the adapted layers, picked after round 1",
            summed="exact: the k values are the change; round 1 sums the Fisher information",
            example_dp="product of the matrix's input and its output's gradient at the picked places",
            export="union.safetensors only",
            served_by=(),
        ),
        "bitfit": MethodRow(
            title="BitFit",
            formula="b + delta",
            paper="Ben Zaken 2022",
            attaches="every bias of the adapted layers, layer norms included; refused on a model without biases",
            summed="exact: the parameters are the change",
            example_dp="the output's gradient summed over tokens",
            export="PEFT LoRA with bias = all",
            served_by=("peft",),
        ),
        "layernorm": MethodRow(
            title="LayerNorm tuning",
            formula="n(x) * (w + dw) + (b + db)",
            paper="Zhao 2024; Qi 2022",
            attaches="every norm of the adapted layers; its bias is BitFit's where the run has BitFit",
            summed="exact: the parameters are the change",
            example_dp="product of normalised input and gradient summed over tokens",
            export="PEFT LN_TUNING; beside another method in modules_to_save",
            served_by=("peft",),
        ),
        "ia3": MethodRow(
            title="IA3",
            formula="(1 + delta) * k, (1 + delta) * v, (1 + delta) * h",
            paper="Liu 2022",
            attaches="keys, values and the input of the MLP's second matrix in the adapted layers",
            summed="exact in delta: a gain is linear in it, gains of two layers multiply as in any model",
            example_dp="product of input and gradient summed over tokens",
            export="PEFT IA3; beside LoRA or BitFit in union.safetensors only",
            served_by=("peft",),
        ),
        **ADDITIVE_ROWS,
        **PROMPT_ROWS,
        **MIXED_ROWS,
        "head": MethodRow(
            title="Class head",
            formula="W_c x + b_c",
            paper="Devlin 2019",
            attaches="the model's own classifier; nothing on a language model",
            summed="exact: the parameters themselves",
            example_dp="outer product of its input and the logits' gradient",
            export="in the PEFT files (modules_to_save)",
            served_by=("peft",),
        ),
    }
)
"""By the name that run.toml uses, in the order in which parts apply to one module."""


def markdown() -> str:
    """The table of docs/methods.md."""
    head = ("Method", "Formula", "Paper", "Attaches to", "Under secure aggregation", "Per-example gradient")
    lines = [_line((*head, "Export", "Runs without fedpeft in")), _line(("---",) * (len(head) + 2))]
    for name, row in CATALOGUE.items():
        cells = (row.formula, row.paper, row.attaches, row.summed, row.example_dp, row.export)
        lines.append(_line((f"`{name}`: {row.title}", f"`{cells[0]}`", *cells[1:], ", ".join(row.served_by) or "-")))
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
