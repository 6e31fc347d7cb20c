"""Loading an artifact as a frozen float32 model for one task.

The model is built without weights, then given each tensor of the artifact: unpacked to float32 (``dense``)
or kept packed (``quantized``, see ``residency``). What a device chooses here changes memory and speed,
never a logit. Every parameter and persistent buffer is accounted for: from the artifact, or named as the
task's new head; only what no checkpoint holds is computed here.
"""

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fedpeft.base.architecture import may_be_missing, places_of, quiet_transformers, read_config, skeleton, tags_words
from fedpeft.base.artifact import WEIGHTS_FILE, BaseArtifact, TaskName
from fedpeft.base.experts import PackedExperts, expert_tensors, experts_of, own_products
from fedpeft.base.quantize import parts_of
from fedpeft.base.residency import PackedWeight, QuantizedEmbedding, QuantizedLinear
from fedpeft.base.source import CONFIG_FILE, read_json
from fedpeft.base.verified import verified
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.tasks.form import NUMBER, SEQUENCE, SINGLE, STATES, TAGS, served, without_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Value = TypeVar("Value")

__all__ = ["load_model", "load_tokenizer", "packed_weights"]


def load_model(
    artifact: BaseArtifact,
    *,
    task: TaskName,
    labels: tuple[str, ...] = (),
    head_seed: int,
    residency: Literal["dense", "quantized"] = "dense",
    problem_type: str = SINGLE,
) -> nn.Module:
    """The transformers model of ``artifact`` for ``task``: float32, frozen, every dropout 0, in eval mode.

    Args:
        artifact: from the store; verified (``fedpeft.base.verified``), then memory-mapped.
        task: the form: with outputs for a text or for its tokens (needs ``labels``), or a language model.
        labels: names of the outputs, in the order of the logits.
        head_seed: the only thing that the new head's values depend on; no global generator is read or moved.
        problem_type: transformers' name of a classifier's loss; ``regression`` has one output.
        residency: ``dense`` unpacks every weight once; ``quantized`` keeps linear layers and embeddings packed.

    Returns:
        A ``*ForSequenceClassification``, ``*ForTokenClassification``, ``*ForCausalLM`` or a bare ``*Model``.

    Raises:
        ConfigInvalid: the artifact cannot serve the task, or there are fewer than two labels.
        IntegrityFailed: a file does not hold what the manifest says.
    """
    verified(artifact)
    content = read_json(artifact.path / CONFIG_FILE)
    forms = served(tuple(artifact.manifest.tasks))
    if task not in forms or (task == TAGS and not tags_words(read_config(content))):
        able = ", ".join(artifact.manifest.tasks)
        raise ConfigInvalid(
            f"Expected a base for task.kind={task}, found {artifact.model_type} for {able}; use another base.model."
        )
    named, least = not without_names(task), 1 if problem_type == NUMBER else 2
    if named and (len(labels) < least or len(set(labels)) < len(labels)):
        raise ConfigInvalid(f"Expected two or more distinct labels, found {labels}; correct task.labels.")
    if named:
        content |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
        content["problem_type"] = problem_type if task == SEQUENCE else None
    config = read_config(content)
    model = skeleton(config, task)
    head = _head_of(artifact, task, model)
    weights, entries = packed_weights(artifact), dict(artifact.manifest.tensors)
    if task == STATES:  # the base alone has its tensors under shorter names
        weights, entries = _of_backbone(model, weights), _of_backbone(model, entries)
    all_plain = artifact.manifest.quantize == "none"
    std = float(getattr(config, "initializer_range", 0.02) or 0.02)
    own_products(model)
    if residency == "quantized":
        _keep_packed(model, weights)
    held, given = model.state_dict(keep_vars=True), {}
    for name, names in places_of(model).items():
        if name in head or name in weights or not may_be_missing(model, name):
            given[name] = names
    _compute_the_rest(model, {name for names in given.values() for name in names})
    for name, names in given.items():
        shape = tuple(held[name].shape)
        if name in head:
            _assign(model, names, _initial(name, shape, std, head_seed))
            continue
        if name not in weights or weights[name].shape != shape:
            raise IntegrityFailed(f"Expected {name} {shape} in {artifact.digest}, found none; build it again.")
        value = weights[name].unpack()
        if entries[name].encoding == "plain" and not all_plain:
            value = value.clone()  # a bias of a few bytes would keep the map of the whole file
        _assign(model, names, value)
    _freeze(model)
    if head:  # what the task adds, for whoever trains and exports it (fedpeft.grafting.anatomy)
        model.fedpeft_head = head  # type: ignore[assignment]
    return model


def _of_backbone(model: nn.Module, named: Mapping[str, Value]) -> dict[str, Value]:
    """What belongs to the backbone, by its names in there."""
    prefix = f"{model.base_model_prefix}."
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _head_of(artifact: BaseArtifact, form: TaskName, model: nn.Module) -> tuple[str, ...]:
    """The parameters that the form adds: those that the manifest names, of ``TAGS`` all outside the backbone."""
    if (entry := artifact.manifest.tasks.get(form)) is not None:
        return tuple(entry.head)
    if form == STATES:
        return ()
    return tuple(name for name in places_of(model) if not name.startswith(f"{model.base_model_prefix}."))


def load_tokenizer(artifact: BaseArtifact) -> "PreTrainedTokenizerBase":
    """The artifact's tokenizer, with a padding token: its own, or the end-of-text token.

    Raises:
        IntegrityFailed: a file does not hold what the manifest says.
    """
    verified(artifact)
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                artifact.path, local_files_only=True, trust_remote_code=False
            )
    except BaseException as error:  # tokenizers panics by an exception of its own that is none of Exception's
        if type(error).__name__ != "PanicException":
            raise
        raise IntegrityFailed(
            f"Expected a tokenizer that can be loaded in {artifact.digest}, found one that breaks the tokenizers "
            "library; use another base."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def packed_weights(artifact: BaseArtifact) -> dict[str, PackedWeight]:
    """Every weight of the artifact as views of its memory map: nothing is read before it is used."""
    weights = {}
    with safe_open(artifact.path / WEIGHTS_FILE, framework="pt", device="cpu") as file:
        stored = set(file.keys())
        for name, entry in artifact.manifest.tensors.items():
            parts = {}
            for part in parts_of(entry.encoding, entry.shape, torch.float32):
                key = f"{name}/{part.part}"
                if key not in stored or tuple((tensor := file.get_tensor(key)).shape) != part.shape:
                    raise IntegrityFailed(
                        f"Expected {key} {part.shape} in {artifact.path / WEIGHTS_FILE}, found another; build it again."
                    )
                parts[part.part] = tensor
            weights[name] = PackedWeight(parts, entry.encoding, entry.shape)
    return weights


def _keep_packed(model: nn.Module, weights: Mapping[str, PackedWeight]) -> None:
    """Replace plain linear layers, embeddings and experts by packed ones, tied ones included. Subclasses stay dense."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # tied parameters: the first name
    for path, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, nn.Embedding):
            continue
        packed = weights.get(names[id(module.weight)])
        if packed is None:
            continue
        replacement: nn.Module
        if isinstance(module, nn.Linear):
            replacement = QuantizedLinear(packed, module.bias)
        else:
            replacement = QuantizedEmbedding(packed, module.padding_idx)
        replacement._is_hf_initialized = True  # type: ignore[assignment] # or transformers would fill its weight
        model.set_submodule(path, replacement)
    for path, module in experts_of(model):
        for name in expert_tensors(module):
            if (packed := weights.get(f"{path}.{name}")) is not None:
                del module._parameters[name]
                module.add_module(name, PackedExperts(packed))
        module._is_hf_initialized = True  # type: ignore[assignment]


def _assign(model: nn.Module, names: tuple[str, ...], value: Tensor) -> None:
    """Put a frozen parameter or a buffer in the place of a meta one, under all its names."""
    parameter = nn.Parameter(value, requires_grad=False) if value.is_floating_point() else None
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters and parameter is not None:
            module._parameters[leaf] = parameter
        else:
            module._buffers[leaf] = value


def _initial(name: str, shape: tuple[int, ...], std: float, head_seed: int) -> Tensor:
    """Matrices normal(0, std) from the seed and the parameter's name, biases 0, scales of norms 1."""
    if len(shape) > 1:
        values = generator(head_seed, "head", name).normal(0.0, std, math.prod(shape))
        return torch.tensor(values, dtype=torch.float32).view(shape)
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)


def _compute_the_rest(model: nn.Module, given: AbstractSet[str]) -> None:
    """Let transformers compute what no checkpoint holds: rotary frequencies, positions, sinusoidal tables.

    Before anything is given: its code also writes into what a checkpoint holds (Youtu's row of the padding token),
    and what is on the meta device cannot be hurt.
    """
    for path, module in model.named_modules():
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            name = f"{path}.{leaf}" if path else leaf
            if name in given:
                tensor._is_hf_initialized = True  # or it would be drawn, for nothing
            elif tensor.is_meta:
                filler = math.nan if tensor.is_floating_point() else -1
                value = torch.full(tensor.shape, filler, dtype=tensor.dtype)
                if leaf in module._parameters:
                    module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
                else:
                    module._buffers[leaf] = value
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()  # type: ignore[operator]


def _freeze(model: nn.Module) -> None:
    """Check that everything has a value; no gradients, no dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta or (tensor.is_floating_point() and bool(torch.isnan(tensor).all()) and tensor.numel()):
            raise IntegrityFailed(
                f"Expected every tensor of {type(model).__name__} to be set, found {name} without a value; "
                "report this architecture."
            )
    model.requires_grad_(False)
    model.eval()
