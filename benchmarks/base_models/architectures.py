"""Models of 30 to 110 million random parameters, of architectures whose layers cost memory in different ways."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedpeft.base import BaseArtifact, build
from fedpeft.config.model import Adapter, Lora
from fedpeft.planner import Workload
from fedpeft.testing.zoo import save_model

__all__ = ["ARCHITECTURES", "built_as", "workload_of"]

WIDE = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
KEYS = {"num_key_value_heads": 4, "max_position_embeddings": 512}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "bert": WIDE | {"vocab_size": 30_528, "max_position_embeddings": 512},
    "modernbert": WIDE | {"vocab_size": 30_528, "max_position_embeddings": 512, "intermediate_size": 1024},
    "deberta-v2": WIDE | {"vocab_size": 30_528, "max_position_embeddings": 512, "position_buckets": 128},
    "gpt2": {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 512, "vocab_size": 50_272},
    "gpt_neox": WIDE | {"vocab_size": 50_272, "max_position_embeddings": 512},
    "llama": WIDE | KEYS | {"vocab_size": 32_000, "intermediate_size": 1408},
    "phi3": WIDE | KEYS | {"vocab_size": 32_000, "intermediate_size": 1408, "original_max_position_embeddings": 512},
    "gemma3_text": WIDE
    | KEYS
    | {"vocab_size": 131_072, "head_dim": 64, "sliding_window": 64}
    | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "mixtral": WIDE | KEYS | {"vocab_size": 32_000, "intermediate_size": 1024},
    "falcon_h1": WIDE
    | KEYS
    | {"vocab_size": 32_000, "intermediate_size": 1408}
    | {"mamba_d_ssm": 512, "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 16, "head_dim": 64},
}
ENCODERS = ("bert", "modernbert", "deberta-v2")


def workload_of(name: str, residency: Literal["dense", "quantized"]) -> Workload:
    """LoRA of rank 8 on the default matrices, eight examples of 128 tokens a step, and an evaluation."""
    classes = 3 if name in ENCODERS else 0
    adapter = Adapter(lora=Lora(rank=8))
    return Workload(
        adapter=adapter,
        methods=("lora",),
        classes=classes,
        batch_size=8,
        length=128,
        eval_examples=32,
        residency=residency,
    )


def built_as(name: str, store: Path) -> BaseArtifact:
    """The artifact of one of them in int8, made if it is not in ``store``."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_model(name, Path(folder) / name, **ARCHITECTURES[name])
        return build(str(saved), quantize="int8", store=store)
