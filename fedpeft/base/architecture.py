"""An architecture as transformers knows it: its config, its model without weights, the names of its tensors.

transformers builds the model on the meta device: no memory, no weights. What its ``state_dict`` lists is what
an artifact holds, so that a buffer which was learnt is not lost. ``plan`` matches that with a checkpoint.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from fedpeft.base.artifact import TaskName
from fedpeft.errors import ConfigInvalid, foreign
from fedpeft.tasks.form import SEQ2SEQ, SEQUENCE, STATES, TAGS, TEXT

__all__ = [
    "clean_config",
    "form_of",
    "has_two_stacks",
    "may_be_missing",
    "on_meta",
    "places_of",
    "quiet_transformers",
    "read_config",
    "skeleton",
    "tags_words",
    "tasks_of",
    "values_of",
]

_AUTO: Mapping[TaskName, Any] = {
    SEQUENCE: AutoModelForSequenceClassification,
    TAGS: AutoModelForTokenClassification,
    TEXT: AutoModelForCausalLM,
    SEQ2SEQ: AutoModelForSeq2SeqLM,
    STATES: AutoModel,
}

_BARE = frozenset(
    name
    for names in MODEL_MAPPING_NAMES.values()
    for name in ((names,) if isinstance(names, str) else names)
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
)

MOST_MODULES = 4096
"""Layers, or experts of a layer: several times what any published model has."""

VOLATILE = ("_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def clean_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config without paths, library versions and storage types: what the artifact keeps."""
    return {key: value for key, value in content.items() if key not in VOLATILE}


def read_config(content: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' config object, with every kind of dropout off.

    Raises:
        ConfigInvalid: transformers has no such architecture, or does not take these settings for it.
    """
    model_type = content.get("model_type")
    options = {key: _number(value) for key, value in content.items()}
    for key, value in options.items():
        if (
            re.search(r"drop(out)?(_|$)|pdrop$|layerdrop", key)
            and isinstance(value, float | int)
            and not isinstance(value, bool)
        ):
            options[key] = 0.0
    if str(model_type) not in CONFIG_MAPPING:
        raise ConfigInvalid(
            f"Expected a model_type that transformers {transformers.__version__} knows, found {model_type!r}; "
            "use another model."
        )
    _expect_within_reason(content)
    with foreign(partial(_refused_by_transformers, model_type=model_type)):
        config: PretrainedConfig = CONFIG_MAPPING[str(model_type)].from_dict(options)
    return config


def _refused_by_transformers(said: str, model_type: object) -> ConfigInvalid:
    return ConfigInvalid(
        f"Expected a config.json of which transformers {transformers.__version__} makes a {model_type} model, "
        f"found: {said}; correct config.json, or fetch it again."
    )


def _expect_within_reason(content: Mapping[str, Any]) -> None:
    """Refuses numbers of modules that would be made one by one for hours, before any weight is looked at."""
    for key, value in content.items():
        if re.search(r"(layers?|blocks|experts)$", str(key)) and isinstance(value, int) and value > MOST_MODULES:
            raise ConfigInvalid(
                f"Expected {key} of {MOST_MODULES:,} or fewer in config.json, found {value:.3g}; correct config.json."
            )
        if isinstance(value, Mapping):
            _expect_within_reason(value)


def _number(value: Any) -> Any:
    """Infinity and NaN, which transformers writes into config.json as an object: ``{"__float__": "Infinity"}``."""
    if isinstance(value, dict):
        names = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
        if set(value) == {"__float__"} and value["__float__"] in names:
            return names[value["__float__"]]
        return {key: _number(item) for key, item in value.items()}
    return [_number(item) for item in value] if isinstance(value, list) else value


def skeleton(config: PretrainedConfig, task: TaskName) -> nn.Module:
    """The model of ``task`` on the meta device: structure and names, no weights. Leaves every RNG as it was."""
    model = on_meta(config, lambda known: _AUTO[task].from_config(known, dtype=torch.float32))
    if task == STATES and "pooler" in model._modules:  # reads one token, and no task reads it
        model._modules["pooler"] = None
    return model


def form_of(model: nn.Module) -> TaskName:
    """Which form a model of transformers has, by itself or wrapped by peft: its class says so."""
    if has_two_stacks(model):
        return SEQ2SEQ
    wrapped = getattr(model, "get_base_model", None)  # peft's own class is named after none of them
    name = type(model if wrapped is None else wrapped()).__name__
    if name in _BARE:
        return STATES
    if name in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values():
        return TAGS
    return SEQUENCE if name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values() else TEXT


def values_of(output: Any) -> Tensor:
    """What a model's forms give as its answer: the logits, or the last layer's states of one without a head."""
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def tags_words(config: PretrainedConfig) -> bool:
    """Whether transformers has a class of the form ``TAGS`` for this architecture."""
    return config.model_type in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES


def has_two_stacks(model: nn.Module) -> bool:
    """Whether this is an encoder-decoder: it is called with a source and a target."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def on_meta(config: PretrainedConfig, make: Callable[[PretrainedConfig], object]) -> nn.Module:
    """The module that ``make`` returns, without memory for its tensors.

    Args:
        config: that others wrote.
        make: one of transformers' constructors.

    Raises:
        ConfigInvalid: no model can be made of that configuration.
    """
    refusal = partial(_refused_by_transformers, model_type=config.model_type)
    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"), foreign(refusal):
        model = make(config)
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch module, found {type(model).__name__}.")
    return model


def tasks_of(config: PretrainedConfig) -> Iterator[TaskName]:
    """The tasks that transformers has a class for with this architecture."""
    if getattr(config, "is_encoder_decoder", False):
        # Their classifiers feed one text to both stacks; what such models are for is a text from a text.
        if config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            yield SEQ2SEQ
        return
    if config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        yield SEQUENCE
    # A masked language model with a causal class attends to the right unless its config says otherwise.
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    encoder = encoder or getattr(config, "attn_type", "uni") == "bi"  # XLNet, which sees the text that it is asked for
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not encoder:
        yield TEXT


def places_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """What a checkpoint of ``model`` holds: parameters and persistent buffers, tied ones once.

    Returns:
        The first name of each tensor, and all its names.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return {group[0]: tuple(group) for group in names.values()}


def may_be_missing(model: nn.Module, name: str) -> bool:
    """Whether transformers computes this when a checkpoint lacks it: a buffer of indices, or a table so declared.

    A table is a buffer, or a parameter that is never trained (Marian's positions).
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = module._buffers.get(leaf)
    if tensor is not None and not tensor.is_floating_point():
        return True
    table = tensor is not None or not module.get_parameter(leaf).requires_grad
    declared = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return table and any(re.search(pattern, name) for pattern in declared)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' advice and progress bars off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
