"""Where a transformer keeps its parts: the layers, in each layer the matrices that methods attach to, and the head.

By ``fedpeft.layout``, of the model's own modules.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fedpeft.base.architecture import form_of
from fedpeft.base.experts import expert_tensors, experts_of
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.expert_views import view_expert
from fedpeft.grafting.rows import is_turned, view_rows
from fedpeft.layout import TURNED_EXPERTS, Layout, Port, layout_of
from fedpeft.target_names import AUTO, SLOTS
from fedpeft.tasks.form import STATES

__all__ = ["Anatomy", "dissect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The parts of one model.

    Args:
        model: the model itself.
        layout: its layers.
        first_layer: the lowest layer that may carry adapters; ``layer_count`` when none does.
        stop_layer: the layer after the last one that may.
        causal: whether a token sees only those before it.
        head: names of the parameters of the class head, all that the task adds to the base; empty for a language model.
    """

    model: nn.Module
    layout: Layout
    first_layer: int
    stop_layer: int
    causal: bool
    head: tuple[str, ...]

    @property
    def layer_count(self) -> int:
        """How many layers there are."""
        return len(self.layout)

    @property
    def layer_paths(self) -> tuple[str, ...]:
        """Their paths, from the input up."""
        return self.layout.paths

    def layer(self, index: int) -> nn.Module:
        """One layer, counted from the input."""
        return self.model.get_submodule(self.layout.paths[index])

    def chosen_layers(self) -> dict[str, nn.Module]:
        """The layers that carry adapters, by path, from the input up."""
        return {self.layout.paths[i]: self.layer(i) for i in range(self.first_layer, self.stop_layer)}

    @property
    def cut(self) -> int:
        """The lowest layer from which the rest can be computed from its input alone; 0: there is none above the lowest.

        Not above the layers whose keys and values upper layers read (Gemma 3n, some Gemma 4), nor in an
        encoder-decoder, whose decoder reads the encoder's output in every layer.
        """
        config: Any = self.model.config
        whole = getattr(config, "num_kv_shared_layers", 0) or getattr(config, "is_encoder_decoder", False)
        return 0 if whole else self.first_layer

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: what turns token ids into hidden states."""
        return cast("nn.Module", self.model.base_model)

    def within(self, layers: tuple[int, int] | None, *, wanted_by: str) -> "Anatomy":
        """The same model with adapters from the first to the last of ``layers`` only; None: unchanged.

        Raises:
            ConfigInvalid: no such layers.
        """
        if layers is None:
            return self
        first, last = layers
        if not 0 <= first <= last < self.layer_count:
            problem = Problem(
                where=f"{wanted_by}.layers",
                expected=f"[first, last] within 0..{self.layer_count - 1}",
                found=str(list(layers)),
            )
            raise ConfigInvalid("This model has no such layers.", problems=[problem])
        return replace(self, first_layer=first, stop_layer=last + 1)

    def ports(self, target: str, *, wanted_by: str) -> list[tuple[int, Port]]:
        """The chosen layers' matrices that ``target`` names, each with its layer's number; layers may have none.

        Raises:
            ConfigInvalid: no layer of the model has one; the modules and the choices are listed.
        """
        if not any(self.layout.select(index, target) for index in range(self.layer_count)):
            raise self._lacks(target, wanted_by)
        chosen = range(self.first_layer, self.stop_layer)
        return [(index, port) for index in chosen for port in self.layout.select(index, target)]

    def target_modules(self, targets: Iterable[str], *, wanted_by: str) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of every target in the chosen layers, target by target from the input up, each once.

        Rows of a wider matrix are a module of their own (``fedpeft.grafting.rows``), and so is one expert's matrix
        (``fedpeft.grafting.expert_views``).

        Raises:
            ConfigInvalid: see ``ports``.
        """
        named = (name for target in targets for name in (self.layout.usual if target == AUTO else (target,)))
        for index, port in dict.fromkeys(one for name in named for one in self.ports(name, wanted_by=wanted_by)):
            path = f"{self.layout.paths[index]}.{port.path}"
            if port.expert is not None:
                experts, _, tensor = path.rpartition(".")
                one = view_expert(self._experts(experts), tensor, port.expert)
                yield f"{experts}.fedpeft_experts.{tensor}.{port.expert}", one
                continue
            host = self.model.get_submodule(path)
            if port.rows is None:
                yield path, host
            else:
                view = view_rows(host, port.rows)
                yield next(f"{path}.{name}" for name, one in host.named_modules() if one is view), view

    def slot_modules(self, slot: str, *, wanted_by: str) -> dict[str, nn.Module]:
        """The modules of one slot in the chosen layers, by path."""
        return dict(self.target_modules([slot], wanted_by=wanted_by))

    def attentions(self, slot: str, *, wanted_by: str) -> dict[str, tuple[str, str, nn.Module]]:
        """By path of the matrix: the attention module that has it, its path in there, and the matrix.

        Raises:
            ConfigInvalid: see ``ports``; a module holds several attentions' matrices; the keys are made from a narrow
                latent, as DeepSeek's are, so no matrix is as wide as they are.
        """
        config: Any = self.model.config
        if slot == "k" and getattr(config.get_text_config(), "kv_lora_rank", None):
            raise ConfigInvalid(
                f"Expected a model with a matrix of keys for {wanted_by}, found {type(self.model).__name__}, which "
                "makes keys and values from one latent (kv_lora_rank); use lora, ia3 or bottleneck on this model "
                "instead."
            )
        found = {}
        for path, host in self.target_modules([slot], wanted_by=wanted_by):
            stem = path.partition(".fedpeft")[0].rpartition(".")[0]
            found[path] = stem, path.removeprefix(f"{stem}."), host
        return found

    def _experts(self, path: str) -> nn.Module:
        """A set of experts; refused if its tensors are stored the other way round than the layout says."""
        module, kind = self.model.get_submodule(path), self.layout.model_type
        if bool(module.is_transposed) != (kind in TURNED_EXPERTS):
            raise ConfigInvalid(
                f"Expected the experts of {kind} the other way round in {path}; take the experts out of the targets "
                "and report this architecture."
            )
        return module

    def _lacks(self, target: str, wanted_by: str) -> ConfigInvalid:
        modules = sorted({path for layer in self.layout.layers for path in layer.matrices})
        listed = ", ".join(modules[:24]) + (f" and {len(modules) - 24} more" if len(modules) > 24 else "")
        named = f'[adapter.slots] {target} = "{modules[0]}"' if target in SLOTS else f'targets = ["{modules[0]}"]'
        experts = ("experts",) if any(layer.experts for layer in self.layout.layers) else ()
        choices = ", ".join((*self.layout.slots, "auto", "all-linear", *experts))
        problem = Problem(
            where=f"{wanted_by}: target {target!r}",
            expected=f"one of {choices}, or one of the layers' modules: {listed}",
            found=f"{type(self.model).__name__} without such a matrix",
            remedy=f"Take {target!r} out of the targets, or name a module, as in {named}.",
        )
        return ConfigInvalid(f"{wanted_by}: this model has no such matrix.", problems=[problem])


def dissect(model: nn.Module, layers: int | str, slots: Mapping[str, str] | None = None) -> Anatomy:
    """Find the parts of ``model``.

    Args:
        model: a Hugging Face transformer with a task head.
        layers: ``all``, or how many of the top layers carry adapters.
        slots: short names for modules that the table does not know ([adapter.slots]).

    Raises:
        ConfigInvalid: there are no numbered layers, or fewer than asked for.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ConfigInvalid(f"Expected a transformer from the transformers library, found {type(model).__name__}.")
    layout = layout_of(_weights(model), {**config.to_dict(), "model_type": config.model_type}).naming(slots or {})
    _check_turned(model, layout)
    return Anatomy(
        model=model,
        layout=layout,
        first_layer=_first_layer(len(layout), layers),
        stop_layer=len(layout),
        causal=_is_causal(config),
        head=head_names(model),
    )


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The parameters that a classifier has and its base does not.

    Those that whoever loaded the base noted (``fedpeft.base.load``): a pooler that no checkpoint holds is among them.
    Else all that is outside of the backbone.
    """
    if form_of(model) == STATES or getattr(model, "get_output_embeddings", lambda: None)() is not None:
        return ()
    noted: tuple[str, ...] | None = getattr(model, "fedpeft_head", None)
    prefix = f"{model.base_model_prefix}."
    return tuple(
        name
        for name, _ in model.named_parameters()
        if ".fedpeft" not in name and (not name.startswith(prefix) if noted is None else name in noted)
    )


def _is_causal(config: Any) -> bool:
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "attn_type", "uni") == "bi"
    return not encoder or bool(getattr(config, "is_decoder", False))


def _weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the linear modules and of experts, packed or not, as their checkpoint has them."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in experts_of(model):
        found |= {f"{path}.{name}": shape for name, shape in expert_tensors(module).items()}
    for path, module in model.named_modules():
        if ".fedpeft" in path:
            continue
        if is_turned(module):
            found[path] = tuple(module.get_parameter("weight").shape)
        elif isinstance(module, nn.Linear):
            found[path] = (module.out_features, module.in_features)
    return found


def _check_turned(model: nn.Module, layout: Layout) -> None:
    """Refuses a model whose modules do not store what the layout says."""
    for path, layer in zip(layout.paths, layout.layers, strict=True):
        for name in layer.matrices:
            if is_turned(model.get_submodule(f"{path}.{name}")) != layer.transposed:
                raise ConfigInvalid(
                    f"Expected {path}.{name} to be {'Conv1D' if layer.transposed else 'a linear module'}, found "
                    f"{type(model.get_submodule(f'{path}.{name}')).__name__}; report this architecture."
                )


def _first_layer(count: int, layers: int | str) -> int:
    if layers == "all":
        return 0
    if not isinstance(layers, int) or not 0 <= layers <= count:
        problem = Problem(where="adapter.layers", expected=f'"all" or 0..{count}', found=repr(layers))
        raise ConfigInvalid("Too many layers asked for.", problems=[problem])
    return count - layers
