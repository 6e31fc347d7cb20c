"""Opening a source's weights: named tensors one at a time, its config, and its tokenizer's files.

Safetensors are read through a memory map, row by row; so is a GGUF file (``gguf``), which is converted once, at
the publisher.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedpeft.base.architecture import clean_config, quiet_transformers
from fedpeft.base.gguf import open_gguf
from fedpeft.base.source import CONFIG_FILE, TOKENIZER_FILES, ModelSource, read_json, weight_files
from fedpeft.base.store import write_json
from fedpeft.base.tensors import RowTensor
from fedpeft.errors import ConfigInvalid
from fedpeft.isolated import IsolationEnded, isolated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Checkpoint", "open_checkpoint", "write_tokenizer"]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
VOLATILE_TOKENIZER_KEYS = (
    "name_or_path",
    "_name_or_path",
    "tokenizer_file",
    "special_tokens_map_file",
    "is_local",
    "local_files_only",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights and config of a source.

    Args:
        config: config.json, cleaned.
        tensors: by the source's own names.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, RowTensor]


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a resolved source.

    Raises:
        ConfigInvalid: the weights cannot be read, or transformers cannot convert them.
    """
    if source.root is None:
        raise ValueError(f"Expected a source with files, found {source.origin}.")
    if source.kind == "gguf":
        config, tensors = open_gguf(source.files[0])
        return Checkpoint(config=config, tensors=tensors)
    return _open_safetensors(source.root)


def _open_safetensors(root: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, RowTensor] = {}
    for path in weight_files(root):
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise ConfigInvalid(f"Expected safetensors in {path}, found {error}; fetch the file again.") from error
        for name in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
            part = file.get_slice(name)  # type: ignore[no-untyped-call]
            if (dtype := DTYPES.get(part.get_dtype())) is None:
                raise ConfigInvalid(
                    f"Expected weights in float32, float16 or bfloat16, found {name} in {part.get_dtype()}; "
                    "start from the unquantized weights."
                )
            if name in tensors:
                raise ConfigInvalid(f"Expected {name} in one file of {root}, found it in two; remove the one too many.")
            shape = tuple(part.get_shape())
            tensors[name] = RowTensor(shape, dtype, _reader(file, name, shape))
    return Checkpoint(config=clean_config(read_json(root / CONFIG_FILE)), tensors=tensors)


def _reader(file: Any, name: str, shape: tuple[int, ...]) -> Callable[[int, int], Tensor]:
    """Rows of one tensor of an open file: copied out of its memory map slab by slab."""

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = file.get_slice(name)[start:stop] if shape else file.get_tensor(name)
        return rows

    return read


def write_tokenizer(source: ModelSource, target: Path) -> tuple[int | None, int | None]:
    """Put the tokenizer's files into ``target``, without local paths, and load them once to prove that they work.

    Returns:
        Its padding and end-of-text token ids.

    Raises:
        ConfigInvalid: transformers cannot load it, or its chat template takes without end.
    """
    from transformers import AutoTokenizer

    if source.root is None:
        raise ValueError(f"Expected a source with files, found {source.origin}.")
    try:
        with quiet_transformers():
            if source.kind == "gguf":
                AutoTokenizer.from_pretrained(source.root, gguf_file=source.files[0].name).save_pretrained(target)
            else:
                for name in TOKENIZER_FILES:
                    if (source.root / name).is_file():
                        (target / name).write_bytes((source.root / name).read_bytes())
            settings = target / "tokenizer_config.json"
            if settings.is_file():
                write_json(
                    settings,
                    {key: value for key, value in read_json(settings).items() if key not in VOLATILE_TOKENIZER_KEYS},
                )
            tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigInvalid(
            f"Expected a tokenizer that transformers loads in {source.origin}, found {error}; "
            "save it with transformers."
        ) from error
    except BaseException as error:  # tokenizers panics by an exception of its own that is none of Exception's
        if type(error).__name__ != "PanicException":
            raise
        raise ConfigInvalid(
            f"Expected a tokenizer that can be loaded in {source.origin}, found one that breaks the tokenizers "
            "library; save it with transformers."
        ) from error
    _check_template(tokenizer, source.origin)
    return tokenizer.pad_token_id, tokenizer.eos_token_id


def _check_template(tokenizer: "PreTrainedTokenizerBase", origin: str) -> None:
    """Returns when the chat template renders two turns within limits, or says that it takes no such turns.

    Raises:
        ConfigInvalid: it takes more time or memory than any template needs.
    """
    if not tokenizer.chat_template:
        return
    try:
        isolated(lambda: str(tokenizer.apply_chat_template(_TURNS, tokenize=False)), cpu_s=5.0, memory_bytes=512 << 20)
    except IsolationEnded as ended:
        if ended.exhausted:
            raise ConfigInvalid(
                f"Expected a chat template that renders two turns in {origin}, found that {ended}; devices would "
                "refuse it: use another model, or remove the template."
            ) from ended
