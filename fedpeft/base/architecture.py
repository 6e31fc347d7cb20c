"""What an architecture needs of a checkpoint: parameter names, roles, and the head each task adds.

transformers builds the model on the meta device (no memory, no weights); its ``named_parameters`` are the
artifact's tensor names. Parameters outside the backbone that the checkpoint lacks, and a missing pooler,
are a task's new head; anything else missing means that the task is not available.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from fedpeft.base.artifact import TaskName
from fedpeft.base.manifest import TaskEntry
from fedpeft.errors import ConfigInvalid, Problem

__all__ = ["NeededTensor", "Plan", "clean_config", "plan", "quiet_transformers", "read_config", "skeleton"]

VOLATILE = ("_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
LEGACY = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))


@dataclass(frozen=True, slots=True)
class NeededTensor:
    """One tensor of the artifact, and where the checkpoint has it."""

    name: str
    source_name: str
    role: Literal["linear", "embedding", "other"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to take from a checkpoint, for every task that it can serve."""

    tasks: Mapping[TaskName, TaskEntry]
    tensors: tuple[NeededTensor, ...]


def clean_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config without paths, library versions and storage types: what the artifact keeps."""
    return {key: value for key, value in content.items() if key not in VOLATILE}


def read_config(content: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' config object, with every kind of dropout off.

    Raises:
        ConfigInvalid: transformers has no such architecture, or the model is an encoder-decoder.
    """
    model_type = content.get("model_type")
    if content.get("is_encoder_decoder"):
        raise ConfigInvalid(
            f"Expected an encoder or a decoder, found the encoder-decoder {model_type}; use another model."
        )
    options = dict(content)
    for key, value in options.items():
        if (
            re.search(r"drop(out)?(_|$)|pdrop$|layerdrop", key)
            and isinstance(value, float | int)
            and not isinstance(value, bool)
        ):
            options[key] = 0.0
    options.pop("model_type", None)
    try:
        return AutoConfig.for_model(str(model_type), **options)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigInvalid(
            f"Expected a model_type that transformers {transformers.__version__} knows, found {model_type!r}: {error}"
        ) from error


def skeleton(config: PretrainedConfig, task: TaskName) -> nn.Module:
    """The model of ``task`` on the meta device: structure and names, no weights. Leaves every RNG as it was."""
    auto = AutoModelForSequenceClassification if task == "classify" else AutoModelForCausalLM
    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32)
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch module, found {type(model).__name__}.")
    return model


def plan(config: PretrainedConfig, available: Collection[str]) -> Plan:
    """Match a checkpoint's tensor names with the parameters that each task needs.

    Args:
        available: the names in the checkpoint.

    Raises:
        ConfigInvalid: no task can be served; names what each of them misses.
    """
    names = {_modern(name): name for name in available}
    tasks: dict[TaskName, TaskEntry] = {}
    tensors: dict[str, NeededTensor] = {}
    problems = []
    for task in _tasks_of(config):
        model = skeleton(config, task)
        prefix = f"{model.base_model_prefix}."
        roles = _roles(model)
        found = {name: _source_name(name, prefix, names) for name in roles}
        missing = [name for name, source in found.items() if source is None]
        head = tuple(name for name in missing if _is_head(name, prefix, task))
        if lacking := [name for name in missing if name not in head]:
            listed = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            problems.append(Problem(where=type(model).__name__, expected=listed, found="no such tensors"))
            continue
        replaced = {name for name in roles if task == "classify" and not name.startswith(prefix)}
        head = tuple(name for name in roles if name in head or name in replaced)
        tasks[task] = TaskEntry(architecture=type(model).__name__, head=head)
        tensors |= {
            name: NeededTensor(name, source, roles[name])
            for name, source in found.items()
            if source and name not in head
        }
    if not tasks:
        raise ConfigInvalid(
            f"Expected a checkpoint for classification or causal language modelling with {config.model_type}, "
            "found neither; load it with transformers and save it again, or use another model.",
            problems=problems,
        )
    return Plan(tasks=tasks, tensors=tuple(tensors[name] for name in sorted(tensors)))


def _tasks_of(config: PretrainedConfig) -> Iterator[TaskName]:
    if config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        yield "classify"
    # A masked language model with a causal class attends to the right unless its config says otherwise.
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not encoder:
        yield "causal-lm"


def _is_head(name: str, prefix: str, task: TaskName) -> bool:
    return task == "classify" and (not name.startswith(prefix) or "pooler" in name.split("."))


def _roles(model: nn.Module) -> dict[str, Literal["linear", "embedding", "other"]]:
    """Every parameter and persistent buffer of the model, tied ones once, under their first name."""
    roles: dict[str, Literal["linear", "embedding", "other"]] = dict.fromkeys(
        (name for name, _ in model.named_parameters()), "other"
    )
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and f"{path}.weight" in roles:
            roles[f"{path}.weight"] = "embedding"
        elif (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and f"{path}.weight" in roles:
            roles[f"{path}.weight"] = "linear"
    return roles


def _source_name(name: str, prefix: str, names: Mapping[str, str]) -> str | None:
    """The checkpoint's name for a parameter: as it is, or of a checkpoint saved from the bare backbone."""
    return names.get(name) or (names.get(name.removeprefix(prefix)) if name.startswith(prefix) else None)


def _modern(name: str) -> str:
    for pattern, replacement in LEGACY:
        name = pattern.sub(replacement, name)
    return name


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
