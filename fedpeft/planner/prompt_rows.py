"""The catalogue's rows of prompts and prefixes (see ``fedpeft.planner.catalogue``)."""

from collections.abc import Mapping
from types import MappingProxyType

from fedpeft.planner.method_row import MethodRow

__all__ = ["PROMPT_ROWS"]

_MEAN = "the mean of the parameters: exact as a sum, the model is not linear in them"
_ONE_BY_ONE = "one example at a time: all examples share the parameter"

PROMPT_ROWS: Mapping[str, MethodRow] = MappingProxyType(
    {
        "prompt": MethodRow(
            title="Prompt tuning",
            formula="[P; embed(x)]",
            paper="Lester 2021",
            attaches="the input, below every layer: adapter.layers must be all, and nothing is cached",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export="PEFT PROMPT_TUNING when alone; else union.safetensors",
            served_by=("peft",),
        ),
        "p_tuning": MethodRow(
            title="P-tuning",
            formula="[C relu(B relu(A E + a) + b) + c; embed(x)]",
            paper="Liu 2021",
            attaches="the input, below every layer: adapter.layers must be all, and nothing is cached",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export="PEFT PROMPT_TUNING of the encoder's result when alone; else union.safetensors",
            served_by=("peft",),
        ),
        "prefix": MethodRow(
            title="Prefix-tuning",
            formula="softmax(q [K_p; K]) [V_p; V], [K_p, V_p] = O tanh(M E + m) + o",
            paper="Li 2021",
            attaches="attention of the adapted layers: keys and values before its own; E and M are shared",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export="PEFT PREFIX_TUNING when alone on all layers of a decoder; else union.safetensors",
            served_by=("peft",),
        ),
        "p_tuning_v2": MethodRow(
            title="P-tuning v2",
            formula="softmax(q [K_p; K]) [V_p; V]",
            paper="Liu 2022",
            attaches="attention of the adapted layers: keys and values before its own",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export="PEFT PREFIX_TUNING when alone on all layers of a decoder; else union.safetensors",
            served_by=("peft",),
        ),
        "llama_adapter": MethodRow(
            title="LLaMA-Adapter",
            formula="mix(q, K, V) + g * softmax(q W_k P) W_v P",
            paper="Zhang 2023",
            attaches="attention of the adapted layers, before its output matrix; g begins at zero",
            summed=_MEAN,
            example_dp=_ONE_BY_ONE,
            export="PEFT ADAPTION_PROMPT when alone on a decoder; else union.safetensors",
            served_by=("peft",),
        ),
    }
)
