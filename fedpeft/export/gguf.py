"""GGUF for llama.cpp: a LoRA adapter, and the base that it was trained on in float32.

An adapter is a file of its own that llama.cpp loads beside any GGUF of the same base (``--lora``), quantized or not:
for each matrix ``NAME.weight.lora_a`` (r, d_in) and ``NAME.weight.lora_b`` (d_out, r), and one ``adapter.lora.alpha``,
which llama.cpp divides by a tensor's own rank; our factors have one rank (``peft_matrix``). llama.cpp keeps the rows of
Llama's q and k in another order (pairs of a rotation side by side), so B's rows are moved alike.

Only architectures whose conversion was tried against llama.cpp itself are written (``ARCHITECTURES``); for others its
own ``convert_lora_to_gguf.py`` reads the PEFT files and the folder that `fedpeft base export` writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedpeft.base import BaseArtifact, load_model, load_tokenizer
from fedpeft.base.architecture import form_of
from fedpeft.base.source import CONFIG_FILE, read_json
from fedpeft.errors import ConfigInvalid, ResourceMissing
from fedpeft.export.peft_format import to_peft
from fedpeft.files import sync
from fedpeft.grafting.own_form import PREFIX
from fedpeft.tasks.form import STATES, TEXT

if TYPE_CHECKING:
    from fedpeft.methods.union import UnionAdapter

__all__ = ["ARCHITECTURES", "write_gguf_adapter", "write_gguf_base"]

Array = npt.NDArray[np.float32]

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model type -> llama.cpp's architecture."""

_PERMUTED = ("llama", "mistral")
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_CONVERT = "convert its PEFT files with llama.cpp's convert_lora_to_gguf.py and `fedpeft base export`"


def write_gguf_adapter(union: "UnionAdapter", artifact: BaseArtifact, path: Path) -> int:
    """Write the adapter as a GGUF file; the number of matrices that it changes.

    Args:
        union: as trained, of a language model, or of one of vectors (llama.cpp: ``--embedding --pooling mean``).
        artifact: its base.
        path: of the file; replaced whole.

    Raises:
        ConfigInvalid: the model has outputs that llama.cpp does not have, it is more than low-rank changes of matrices,
            or its architecture is not among ``ARCHITECTURES``.
        ResourceMissing: the package gguf is not installed.
    """
    gguf = _gguf()
    if form_of(union.model) not in (TEXT, STATES):
        raise ConfigInvalid(
            "Expected a language model or an embedding model, which llama.cpp runs, found a model of another task; "
            "write one model for transformers: `fedpeft adapter export --full`."
        )
    config: dict[str, Any] = dict(read_json(artifact.path / CONFIG_FILE))
    architecture = _architecture(config)
    form = to_peft(union)
    settings = form.settings
    more = sorted({block.method for block in union.spec.blocks} - form.methods)
    if more or settings["peft_type"] != "LORA" or settings.get("use_dora") or settings.get("modules_to_save"):
        found = ", ".join(more or sorted({block.method for block in union.spec.blocks}))
        raise ConfigInvalid(
            f"Expected low-rank changes of matrices alone, which a GGUF adapter holds, found {found}; "
            "fold the adapter into the base: `fedpeft adapter export --full`."
        )
    if settings.get("bias") != "none":
        raise ConfigInvalid("Expected an adapter without biases, found biases; export it with --full.")
    names = gguf.get_tensor_name_map(_number(gguf, architecture), int(config["num_hidden_layers"]))
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(str(settings["lora_alpha"])))
    downs = sorted(name for name in form.tensors if name.endswith(_DOWN))
    for name in downs:
        path_of = name.removeprefix(PREFIX).removesuffix(_DOWN)
        theirs = _name(names, f"{path_of}.weight", config)
        up = _moved(form.tensors[f"{PREFIX}{path_of}{_UP}"], path_of, config)
        writer.add_tensor(f"{theirs}.lora_a", np.ascontiguousarray(form.tensors[name], np.float32))
        writer.add_tensor(f"{theirs}.lora_b", np.ascontiguousarray(up, np.float32))
    _write(writer, path)
    return len(downs)


@torch.no_grad()
def write_gguf_base(artifact: BaseArtifact, path: Path) -> int:
    """Write the base in float32 as every device holds it, with its vocabulary; the number of tensors.

    Raises:
        ConfigInvalid: its architecture, its positions or its vocabulary are of a kind that is not written here.
        ResourceMissing: the package gguf is not installed.
    """
    gguf = _gguf()
    config: dict[str, Any] = dict(read_json(artifact.path / CONFIG_FILE))
    architecture = _architecture(config)
    model: nn.Module = load_model(artifact, task=TEXT, head_seed=0)
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _describe(writer, config)
    _add_vocabulary(gguf, writer, artifact, int(config["vocab_size"]))
    names = gguf.get_tensor_name_map(_number(gguf, architecture), int(config["num_hidden_layers"]))
    count = 0
    for name, parameter in model.named_parameters():  # tied ones once: llama.cpp takes the embedding for the output
        values = _moved(parameter.float().numpy(), name.rpartition(".")[0], config)
        writer.add_tensor(_name(names, name, config), np.ascontiguousarray(values, np.float32))
        count += 1
    _write(writer, path)
    return count


def _architecture(config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ConfigInvalid(f"Expected a base of {', '.join(ARCHITECTURES)}, found {kind}; {_CONVERT}.")
    return ARCHITECTURES[kind]


def _name(names: Any, ours: str, config: Mapping[str, Any]) -> str:
    found: str | None = names.get_name(ours, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ConfigInvalid(f"Expected a weight that llama.cpp knows, found {ours} of {config['model_type']}.")
    return found


def _moved(values: Array, path: str, config: Mapping[str, Any]) -> Array:
    """The rows of Llama's q and k as llama.cpp keeps them: the two halves of a head interleaved."""
    slot = path.rpartition(".")[2]
    if config["model_type"] not in _PERMUTED or slot not in ("q_proj", "k_proj"):
        return values
    heads = int(config["num_attention_heads"])
    if slot == "k_proj":
        heads = int(config.get("num_key_value_heads") or heads)
    shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


def _describe(writer: Any, config: Mapping[str, Any]) -> None:
    """What llama.cpp computes by."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ConfigInvalid(f"Expected plain rotary positions, found {rope}; use llama.cpp's convert_hf_to_gguf.py.")
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = int(config.get("head_dim") or width // heads)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def _add_vocabulary(gguf: Any, writer: Any, artifact: BaseArtifact, rows: int) -> None:
    """The byte-level BPE of tokenizer.json: tokens, merges, and how llama.cpp calls the way it cuts a text."""
    content = json.loads((artifact.path / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(artifact)
    if content["model"].get("type") != "BPE" or content["model"].get("byte_fallback"):
        raise ConfigInvalid(
            f"Expected a byte-level BPE vocabulary, found {content['model'].get('type')}; use llama.cpp's "
            "convert_hf_to_gguf.py on the folder that `fedpeft base export` writes."
        )
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    kind = gguf.TokenType
    types = [
        kind.UNUSED if number not in by_id
        else kind.CONTROL if number in special
        else kind.USER_DEFINED if number in added
        else kind.NORMAL
        for number in range(rows)
    ]  # fmt: skip
    merges = [one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(content.get("pre_tokenizer")))
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(int(number))
    begins = [int(number) for number in tokenizer("a")["input_ids"]][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _cut(cutter: Any) -> str:
    """llama.cpp's name of a pre-tokenizer."""
    parts = cutter.get("pretokenizers", [cutter]) if isinstance(cutter, dict) else []
    kinds = [part.get("type") for part in parts]
    patterns = [str(part.get("pattern", {}).get("Regex", "")) for part in parts if part.get("type") == "Split"]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and "(?i:'s|'t|'re|'ve|'m|'ll|'d)" in patterns[0]:
        return "llama-bpe" if r"\p{N}{1,3}" in patterns[0] else "qwen2"
    raise ConfigInvalid(
        f"Expected a pre-tokenizer for which llama.cpp has a name, found {', '.join(map(str, kinds))}; "
        "use llama.cpp's convert_hf_to_gguf.py on the folder that `fedpeft base export` writes."
    )


def _number(gguf: Any, architecture: str) -> Any:
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _write(writer: Any, path: Path) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ResourceMissing(
            "Expected the package gguf to write a GGUF file, found none; pip install gguf."
        ) from error
    return gguf
