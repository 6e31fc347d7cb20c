"""What to take from a checkpoint: for each task that it can serve, every tensor of the model, and nothing unsaid.

A tensor that the model needs and the checkpoint lacks refuses the task, unless it belongs to the head that the
task adds (outside the backbone, or a missing pooler). A tensor of the checkpoint that no task has a place for
refuses the checkpoint, unless it is the head of another task, which is left out and named, or transformers says
itself that it means nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import transformers
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
)

from fedpeft.base.architecture import clean_config, may_be_missing, on_meta, places_of, read_config, skeleton, tasks_of
from fedpeft.base.artifact import TaskName
from fedpeft.base.experts import expert_tensors, experts_of
from fedpeft.base.facts import ModelFacts, model_facts
from fedpeft.base.manifest import TaskEntry
from fedpeft.base.multimodal import language_model
from fedpeft.base.names import Match, match
from fedpeft.base.tensors import RowTensor, equal
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.tasks.form import SEQUENCE

__all__ = ["Plan", "PlannedTensor", "plan"]

Role = Literal["linear", "embedding", "other"]
# Masks and tables that old checkpoints hold and that every model computes by itself.
COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias))$")
ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|base_layer)(\.|$)")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the artifact, and what the checkpoint makes it of."""

    name: str
    source_names: tuple[str, ...]
    role: Role
    rows: RowTensor


@dataclass(frozen=True, slots=True)
class Plan:
    """What to take from a checkpoint, for every task that it can serve.

    Args:
        config: the source's config.json, with what its weights say otherwise.
        tasks: class and new head of each task.
        tensors: by name.
        left_out: the source's tensors that no task uses: heads of other tasks.
        facts: what the architecture takes.
        notes: what was not taken as it is, in words.
    """

    config: Mapping[str, Any]
    tasks: Mapping[TaskName, TaskEntry]
    tensors: tuple[PlannedTensor, ...]
    left_out: tuple[str, ...]
    facts: ModelFacts
    notes: tuple[str, ...] = ()


def plan(content: Mapping[str, Any], tensors: Mapping[str, RowTensor]) -> Plan:
    """Match a checkpoint's tensors with what each task's model needs.

    Args:
        content: config.json.
        tensors: the checkpoint, by its own names.

    Raises:
        ConfigInvalid: no task can be served, or a tensor has no place; names them.
    """
    if (pad := _pad_without_row(content)) is not None:
        without = {key: value for key, value in content.items() if key != "pad_token_id"}
        note = f"config.json names the padding token {pad}, which the embedding has no row for: not used."
        return replace(plan(without, tensors), notes=(note,))
    config = read_config(content)
    if (inside := language_model(config, content, tensors)) is not None:
        settings, own, other_senses = inside
        inner = plan(clean_config(settings), own)
        note = f"{config.model_type} is multimodal: its language model is taken, {len(other_senses)} tensors are not."
        return replace(inner, left_out=(*inner.left_out, *other_senses), notes=(*inner.notes, note))
    served: dict[TaskName, _Served] = {}
    problems: list[Problem] = []
    for task in tasks_of(config):
        model = skeleton(config, task)
        found = match(model, tensors)
        if _ties_what_differs(model, found):
            if not content.get("tie_word_embeddings", True):
                raise _tied_anyway(model, found)
            return plan({**content, "tie_word_embeddings": False}, tensors)  # what transformers does, and warns of
        one = _Served(model, task, found)
        lacking = one.lacking()
        if lacking or (wrong := one.misfits()):
            problems += lacking or wrong
        else:
            served[task] = one
    if not served:
        raise ConfigInvalid(
            f"Expected a checkpoint for classification or causal language modelling with {config.model_type}, found "
            "neither; use a checkpoint that is whole and of the architecture that its config.json names.",
            problems=problems,
        )
    left_out = _left_out(config, content, served, tensors)
    first = next(iter(served.values()))
    planned = {tensor.name: tensor for one in served.values() for tensor in one.tensors()}
    return Plan(
        config=content,
        tasks={task: one.entry() for task, one in served.items()},
        tensors=tuple(planned[name] for name in sorted(planned)),
        left_out=left_out,
        facts=model_facts(first.model, content, first.task, served[SEQUENCE].head() if SEQUENCE in served else ()),
    )


def _pad_without_row(content: Mapping[str, Any]) -> int | None:
    """A padding token outside the embedding, as old conversions of Llama have it: -1."""
    pad, rows = content.get("pad_token_id"), content.get("vocab_size")
    return pad if isinstance(pad, int) and (pad < 0 or (isinstance(rows, int) and pad >= rows)) else None


class _Served:
    """One task's model and what the checkpoint has for it."""

    def __init__(self, model: nn.Module, task: TaskName, found: Match) -> None:
        self.model, self.task, self.found = model, task, found
        self.prefix = f"{model.base_model_prefix}."
        self.places = places_of(model)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        # The checkpoint's name for each place: a tied tensor may be there under any of its names.
        self._held = {
            name: next((alias for alias in names if alias in found.tensors), None)
            for name, names in self.places.items()
        }

    def head(self) -> tuple[str, ...]:
        """What the task adds: all that is outside the backbone, and a pooler that the checkpoint lacks."""
        if self.task != SEQUENCE:
            return ()
        return tuple(
            name
            for name, held in self._held.items()
            if not name.startswith(self.prefix) or (held is None and "pooler" in name.split("."))
        )

    def lacking(self) -> list[Problem]:
        head = self.head()
        missing = [
            name
            for name, held in self._held.items()
            if held is None and name not in head and not may_be_missing(self.model, name)
        ]
        if not missing:
            return []
        return [Problem(where=type(self.model).__name__, expected=_some(missing), found="no such tensors")]

    def misfits(self) -> list[Problem]:
        """Tensors of another shape than the model's."""
        return [
            Problem(
                where=f"{type(self.model).__name__}: {name}",
                expected=f"the shape {self._shapes[name]} that config.json says",
                found=str(self.found.tensors[held].shape),
            )
            for name, held in self._taken()
            if self.found.tensors[held].shape != self._shapes[name]
        ][:5]

    def _taken(self) -> Iterator[tuple[str, str]]:
        head = set(self.head())
        yield from ((name, held) for name, held in self._held.items() if held is not None and name not in head)

    def entry(self) -> TaskEntry:
        return TaskEntry(architecture=type(self.model).__name__, head=self.head())

    def tensors(self) -> Iterator[PlannedTensor]:
        roles = _roles(self.model)
        for name, held in self._taken():
            yield PlannedTensor(name, self.found.sources[held], roles.get(name, "other"), self.found.tensors[held])


def _roles(model: nn.Module) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            roles[f"{path}.weight"] = "embedding"
        elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            roles[f"{path}.weight"] = "linear"
    for path, module in experts_of(model):
        roles |= dict.fromkeys((f"{path}.{name}" for name in expert_tensors(module)), "linear")
    return roles


def _ties_what_differs(model: nn.Module, found: Match) -> bool:
    """Whether the checkpoint holds two values for one tied tensor."""
    for names in places_of(model).values():
        held = [name for name in names if name in found.tensors]
        if any(not equal(found.tensors[held[0]], found.tensors[name]) for name in held[1:]):
            return True
    return False


def _tied_anyway(model: nn.Module, found: Match) -> ConfigInvalid:
    tied = [
        ", ".join(held)
        for names in places_of(model).values()
        if len(held := [n for n in names if n in found.tensors]) > 1
    ]
    return ConfigInvalid(
        f"Expected one value for tensors that {type(model).__name__} shares, found different ones for {_some(tied)}; "
        "use a checkpoint of this architecture."
    )


def _left_out(
    config: PretrainedConfig,
    content: Mapping[str, Any],
    served: Mapping[TaskName, _Served],
    tensors: Mapping[str, RowTensor],
) -> tuple[str, ...]:
    """Names of the checkpoint that no task uses: heads of other tasks, sorted.

    Raises:
        ConfigInvalid: some of them are not even that.
    """
    rest = set.intersection(*(set(one.found.unused) for one in served.values()))
    if foreign := sorted(name for name in rest if ADAPTER.search(name)):
        raise ConfigInvalid(
            f"Expected the weights of a model, found an adapter's among them: {_some(foreign)}; merge the adapter "
            "into its base and save that (peft: merge_and_unload), or remove these tensors."
        )
    rest = {name for name in rest if not _means_nothing(name, tensors[name], served)}
    heads: set[str] = set()
    for name in dict.fromkeys(_classes(config, content)):
        if not rest - heads:
            break
        model = on_meta(config, getattr(transformers, name))
        heads |= rest - set(match(model, {key: tensors[key] for key in rest}).unused)
    if strange := sorted(rest - heads):
        classes = " or ".join(type(one.model).__name__ for one in served.values())
        raise ConfigInvalid(
            f"Expected a place for every tensor of the checkpoint in {classes}, found none for {_some(strange)}: with "
            "them left out it would be another model; correct config.json, or save the model again with transformers."
        )
    return tuple(sorted(heads))


def _means_nothing(name: str, tensor: RowTensor, served: Mapping[TaskName, _Served]) -> bool:
    """Tensors that transformers passes over without a warning."""
    if COMPUTED.search(name) or not tensor.dtype.is_floating_point:
        return True
    return any(
        re.search(pattern, place)
        for one in served.values()
        for place in (one.found.unused[name],)
        for pattern in getattr(one.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    )


def _classes(config: PretrainedConfig, content: Mapping[str, Any]) -> Iterator[str]:
    """Classes whose checkpoints hold this backbone: the one that config.json names, those it is trained with."""
    for name in content.get("architectures") or ():
        if hasattr(transformers, str(name)):
            yield str(name)
    for names in (
        MODEL_FOR_PRETRAINING_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        if (found := names.get(config.model_type)) is not None:
            yield found if isinstance(found, str) else found[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
