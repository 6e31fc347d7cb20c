"""GGUF files: written here with llama.cpp's own package, equal to what transformers makes of them."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
from fedpeft.base import build, load_model, load_tokenizer  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.testing.zoo import logits_apart  # noqa: E402

pytestmark = pytest.mark.torch
HIDDEN, LAYERS, HEADS, GROUPS, INNER, ROWS = 64, 2, 4, 2, 96, 288


def write_llama(path: Path, kind: "gguf.GGMLQuantizationType", *, extra: str | None = None) -> Path:
    """A random Llama as convert_hf_to_gguf.py writes it."""
    draw = np.random.Generator(np.random.Philox(3))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(ROWS)
    alphabet = [chr(33 + index) if index < 94 else f"<{index}>" for index in range(ROWS - 5)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "<|endoftext|>", "ab", "cd", *alphabet])
    writer.add_token_types([3, 3, 3, *[1] * (ROWS - 3)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name: str, *shape: int) -> None:
        values = draw.normal(1.0 if "norm" in name else 0.0, 0.1, shape).astype(np.float32)
        plain = len(shape) == 1
        stored = values if plain else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.F32 if plain else kind)

    add("token_embd.weight", ROWS, HIDDEN)
    add("output.weight", ROWS, HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", HIDDEN // 2, HIDDEN),
            ("attn_v", HIDDEN // 2, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ):
            add(f"blk.{layer}.{name}.weight", rows, columns)
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
    if extra is not None:
        add(extra, HIDDEN)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_gguf_file_gives_the_logits_of_transformers_own_conversion(tmp_path: Path, kind: str):
    from transformers import AutoModelForCausalLM

    path = write_llama(tmp_path / "tiny.gguf", getattr(gguf.GGMLQuantizationType, kind))
    artifact = build(str(path), quantize="none", store=tmp_path / "store")
    model = load_model(artifact, task="causal-lm", head_seed=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    assert logits_apart(model, theirs, "causal-lm")[0] <= 1e-5
    assert load_tokenizer(artifact)("ab")["input_ids"]


def test_a_tensor_of_a_gguf_file_without_a_place_is_refused(tmp_path: Path):
    path = write_llama(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F32, extra="rope_freqs.weight")
    with pytest.raises(ConfigInvalid, match=r"rope_freqs\.weight"):
        build(str(path), quantize="none", store=tmp_path / "store")
