"""The catalogue's rows of the methods with small networks of their own (see ``fedpeft.planner.catalogue``)."""

from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.planner.method_row import MethodRow

__all__ = ["ADDITIVE_ROWS", "MIXED_ROWS"]

_MEAN = "the mean of the parameters: exact as a sum, the model is not linear in them"
_OUTER = "outer products of each matrix's input and its output's gradient"
_ONE_BY_ONE = "one example at a time: all places share the factors"
_PLACES = "outputs of attention and feed-forward in the adapted layers, before the residual"
_OWN = "union.safetensors only"

ADDITIVE_ROWS: Mapping[str, MethodRow] = MappingProxyType(
    {
        "bottleneck": MethodRow(
            title="Serial bottleneck adapter",
            formula="y + scale * (U act(D y + d) + u)",
            paper="Houlsby 2019; Pfeiffer 2021",
            attaches="outputs of attention and feed-forward (houlsby), or of the feed-forward alone (pfeiffer)",
            summed=_MEAN,
            example_dp=_OUTER,
            export=_OWN,
            served_by=(),
        ),
        "parallel": MethodRow(
            title="Parallel adapter",
            formula="FFN(x) + scale * (U act(D x + d) + u)",
            paper="He 2022",
            attaches="beside the feed-forward of the adapted layers",
            summed=_MEAN,
            example_dp=_OUTER,
            export=_OWN,
            served_by=(),
        ),
        "compacter": MethodRow(
            title="Compacter",
            formula="as bottleneck, D and U each a sum of n products A_i (x) (s_i t_i)",
            paper="Karimi Mahabadi 2021 (Compacter)",
            attaches=f"{_PLACES}; the slow weights A are shared by all layers",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export=_OWN,
            served_by=(),
        ),
        "hypernetwork": MethodRow(
            title="Hypernetwork adapters",
            formula="y + U act(D y), [D, U] = N relu(P [task; layer; place] + c)",
            paper="Karimi Mahabadi 2021 (HyperFormer)",
            attaches=f"{_PLACES}; one network makes the adapters of all layers",
            summed=f"{_MEAN}; the task's embedding is a block of its own",
            example_dp=_ONE_BY_ONE,
            export=_OWN,
            served_by=(),
        ),
        "fusion": MethodRow(
            title="AdapterFusion",
            formula="y + V sum_n softmax_n((Q y) (K z_n)) z_n, z_n = scale * (U_n act(D_n y + d_n) + u_n)",
            paper="Pfeiffer 2021 (AdapterFusion)",
            attaches="the feed-forward's output of the adapted layers, over frozen adapters of earlier runs",
            summed=f"{_MEAN}; the fused adapters are frozen and sent once",
            example_dp=_OUTER,
            export=_OWN,
            served_by=(),
        ),
    }
)
MIXED_ROWS: Mapping[str, MethodRow] = MappingProxyType(
    {
        "unipelt": MethodRow(
            title="UniPELT",
            formula="LoRA on q and v, prefix, bottleneck, each times sigmoid(w x + b)",
            paper="Mao 2022",
            attaches="q, v, attention and the feed-forward's output of the adapted layers; a gate a token",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export=_OWN,
            served_by=(),
        ),
        "coda": MethodRow(
            title="CoDA: conditional adapters",
            formula="x + f(x) + m * (layer(x) - x) for picked tokens, x + f(x) for the others",
            paper="Lei 2023",
            attaches="around every adapted layer; the router picks the tokens that go through it",
            summed=f"{_MEAN}; each device routes by the mean router",
            example_dp="one example at a time: a token's weight depends on the others",
            export=_OWN,
            served_by=(),
        ),
    }
)
