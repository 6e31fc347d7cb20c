"""[adapter] in run.toml: the union adapter, and one section for each PEFT method.

To add a method: its section, its name in ``MethodName``, its field in ``Adapter``; then ``fedpeft.methods``.
"""

from typing import Literal

from fedpeft.config.reparameterized import Dora, Vera

__all__ = ["Adapter", "BitFit", "Bottleneck", "Dora", "Ia3", "LayerNorm", "Lora", "MethodName", "Vera"]

MethodName = Literal[
    "lora",
    "dora",
    "vera",
    "bitfit",
    "layernorm",
    "ia3",
    "bottleneck",
    "prompt",
    "p_tuning",
    "prefix",
    "p_tuning_v2",
    "llama_adapter",
]
