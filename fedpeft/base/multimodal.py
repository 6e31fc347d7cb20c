"""The language model inside a multimodal checkpoint: what a text task trains of Gemma 3, LLaVA and their like.

Their published folders hold a wrapper: a vision or audio tower, a projection, and a language model under a prefix. A
device that trains on text needs the last alone, and transformers has a class for it. Names are first those of the
wrapper, by transformers' own mapping, then lose the prefix; what belongs to other senses is left out and named.
"""

import json
from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from fedpeft.base.architecture import on_meta
from fedpeft.base.names import match
from fedpeft.base.tensors import RowTensor
from fedpeft.errors import ConfigInvalid

__all__ = ["language_model"]

TOP = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


def language_model(
    config: PretrainedConfig, content: Mapping[str, Any], tensors: Mapping[str, RowTensor]
) -> tuple[dict[str, Any], dict[str, RowTensor], tuple[str, ...]] | None:
    """Config and tensors of the language model, and the names of what is left out; ``None``: there is no wrapper.

    Raises:
        ConfigInvalid: transformers has no class for the wrapper, or none for its language model alone.
    """
    text = config.get_text_config()
    if text is config:
        return None
    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigInvalid(
            f"Expected a language model that transformers runs alone inside {config.model_type}, found "
            f"{text.model_type}; use a checkpoint of a language model."
        )
    wrapper = on_meta(config, getattr(transformers, _class_name(config, content)))
    found = match(wrapper, tensors)
    inner = str(getattr(transformers, _first(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type])).base_model_prefix)
    prefix = _path_of(wrapper, text.model_type)
    own = {name: tensors[name] for name in found.unused}  # for the plan to refuse, or to know
    left_out: list[str] = []
    for name, tensor in found.tensors.items():
        if name.startswith(f"{prefix}."):
            own[f"{inner}.{name.removeprefix(f'{prefix}.')}"] = tensor
        elif name.startswith("lm_head."):
            own[name] = tensor
        else:
            left_out += found.sources[name]
    settings = json.loads(text.to_json_string(use_diff=True))
    settings |= {key: getattr(config, key) for key in TOP if getattr(config, key, None) is not None}
    settings["architectures"] = [_first(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type])]
    return settings, own, tuple(sorted(left_out))


def _class_name(config: PretrainedConfig, content: Mapping[str, Any]) -> str:
    for name in content.get("architectures") or ():
        if hasattr(transformers, str(name)):
            return str(name)
    for names in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if (found := names.get(config.model_type)) is not None:
            return _first(found)
    raise ConfigInvalid(
        f"Expected a multimodal model that transformers implements, found {config.model_type}; use another model."
    )


def _path_of(wrapper: nn.Module, model_type: str) -> str:
    """Where the wrapper keeps its language model."""
    for path, module in wrapper.named_modules():
        if path and isinstance(module, PreTrainedModel) and module.config.model_type == model_type:
            return str(path)
    raise ConfigInvalid(f"Expected a {model_type} inside {type(wrapper).__name__}, found none; use another model.")


def _first(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else names[0]
