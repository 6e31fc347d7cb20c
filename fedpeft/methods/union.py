"""The union adapter: every block that any device of a run may train, on one frozen base (docs/design.md, section 3).

A device applies all of it in its forward pass and trains some of it. Invariants: the base's tensors are
never written; base names are unchanged; every adapter tensor is one parameter of ``adapter.dtype`` (the head's:
float32), named as ``named_parameters`` names it; what travels is ``extract`` and ``load``, float32, never a state dict.

To add a method: its record in ``fedpeft.catalogue``, its file here with an ``attach_*`` function, and a line in
``ATTACH``, in the catalogue's order.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec, flatten, unflatten
from fedpeft.catalogue import PLUGINS
from fedpeft.catalogue.blocks import HEAD
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid, SpecMismatch
from fedpeft.grafting.anatomy import Anatomy, dissect
from fedpeft.grafting.block import Block
from fedpeft.grafting.own_form import OwnForm
from fedpeft.grafting.replica import replicate_modules
from fedpeft.ids import BlockId
from fedpeft.methods import loha, lokr, vera
from fedpeft.methods.adalora import attach_adalora
from fedpeft.methods.bitfit import attach_bitfit
from fedpeft.methods.bottleneck import attach_bottleneck, attach_parallel
from fedpeft.methods.coda import attach_coda
from fedpeft.methods.compacter import attach_compacter
from fedpeft.methods.diffpruning import attach_diffpruning
from fedpeft.methods.dora import attach_dora
from fedpeft.methods.dylora import attach_dylora
from fedpeft.methods.fish import attach_fish
from fedpeft.methods.fusion import attach_fusion
from fedpeft.methods.head import attach_head
from fedpeft.methods.hypernetwork import attach_hypernetwork
from fedpeft.methods.ia3 import attach_ia3
from fedpeft.methods.layernorm import attach_layernorm
from fedpeft.methods.llama_adapter import attach_llama_adapter
from fedpeft.methods.loha import attach_loha
from fedpeft.methods.lokr import attach_lokr
from fedpeft.methods.lora import attach_lora
from fedpeft.methods.plugin import attach_plugin
from fedpeft.methods.prefix import attach_p_tuning_v2, attach_prefix
from fedpeft.methods.prompt import attach_p_tuning, attach_prompt
from fedpeft.methods.qalora import attach_qalora
from fedpeft.methods.relora import attach_relora
from fedpeft.methods.unipelt import attach_unipelt
from fedpeft.methods.vera import attach_vera

__all__ = ["ATTACH", "OWN_FORMS", "UnionAdapter", "attach"]

Vector = npt.NDArray[np.float32]
Attach = Callable[[Anatomy, Adapter, int], tuple[Block, ...]]

ATTACH: Mapping[str, Attach] = MappingProxyType(
    {
        "lora": attach_lora,
        "dora": attach_dora,
        "adalora": attach_adalora,
        "dylora": attach_dylora,
        "relora": attach_relora,
        "qalora": attach_qalora,
        "vera": attach_vera,
        "loha": attach_loha,
        "lokr": attach_lokr,
        "diffpruning": attach_diffpruning,
        "fish": attach_fish,
        "bitfit": attach_bitfit,
        "layernorm": attach_layernorm,
        "ia3": attach_ia3,
        "bottleneck": attach_bottleneck,
        "parallel": attach_parallel,
        "compacter": attach_compacter,
        "hypernetwork": attach_hypernetwork,
        "fusion": attach_fusion,
        "prompt": attach_prompt,
        "p_tuning": attach_p_tuning,
        "prefix": attach_prefix,
        "p_tuning_v2": attach_p_tuning_v2,
        "llama_adapter": attach_llama_adapter,
        "unipelt": attach_unipelt,
        "coda": attach_coda,
        **{name: partial(attach_plugin, name) for name in PLUGINS},
        "head": attach_head,
    }
)
"""By method, in the order in which they apply to one module: that of ``fedpeft.catalogue.METHODS``, then the head."""

OWN_FORMS: Mapping[str, OwnForm] = MappingProxyType({"vera": vera.FORM, "loha": loha.FORM, "lokr": lokr.FORM})
"""Methods for which peft has a form that holds no other change of matrices, in the order of preference."""


class UnionAdapter:
    """A model with its union adapter. Made by ``attach`` or ``replicate``; belongs to one thread at a time.

    Attributes:
        model: the base with the adapter grafted on.
        spec: the adapter's blocks.
        adapter: the configuration it was made from.
        seed: the run's; what a method draws and no block holds (VeRA's projections) is its alone.
        anatomy: where the model keeps its parts; ``anatomy.first_layer`` is the lowest layer that adapts.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, spec: AdapterSpec, *, seed: int) -> None:
        self.model = model
        self.adapter = adapter
        self.seed = seed
        self.spec = spec
        self.anatomy = anatomy_of(model, adapter)
        named = dict(model.named_parameters())
        self._parameters = {
            block.block_id: {tensor.name: named[tensor.name] for tensor in block.tensors} for block in spec.blocks
        }
        self._initial: AdapterState | None = None

    def parameters(self, block_id: BlockId) -> dict[str, nn.Parameter]:
        """The parameters of one block by name, in wire order."""
        self.spec[block_id]  # an unknown block is refused with the list of known ones
        return dict(self._parameters[block_id])

    def state(self) -> AdapterState:
        """A copy of the values that every block has now."""
        return AdapterState(self.spec, self.extract([block.block_id for block in self.spec.blocks]))

    def initial_state(self) -> AdapterState:
        """The values right after ``attach``: where every run with this base, configuration and seed begins."""
        if self._initial is None:
            raise SpecMismatch("Expected an adapter made by attach; a replica starts from a state that it is given.")
        return self._initial

    def load(self, state: AdapterState) -> None:
        """Set every block to the state's values, rounded to the adapter's type.

        Raises:
            SpecMismatch: the state belongs to another specification.
        """
        if state.spec != self.spec:
            raise SpecMismatch(f"Expected a state of adapter {self.spec.digest[:12]}, found {state.spec.digest[:12]}.")
        with torch.no_grad():
            for block in self.spec.blocks:
                values = unflatten(block, state[block.block_id])
                for name, parameter in self._parameters[block.block_id].items():
                    # A copy, because torch has no read-only tensors and the state is immutable.
                    parameter.copy_(torch.from_numpy(values[name].copy()))

    def train_only(self, block_ids: Collection[BlockId]) -> None:
        """From now on these blocks, and nothing else in the model, receive gradients.

        Raises:
            SpecMismatch: a block is unknown or frozen.
        """
        frozen = [block_id for block_id in block_ids if not self.spec[block_id].trainable]
        if frozen:
            raise SpecMismatch(f"Expected trainable blocks, found frozen: {', '.join(sorted(frozen))}.")
        for block_id, parameters in self._parameters.items():
            for parameter in parameters.values():
                parameter.requires_grad_(block_id in block_ids)
                parameter.grad = None

    def extract(self, block_ids: Collection[BlockId]) -> dict[BlockId, Vector]:
        """The flat float32 vectors of these blocks; copies."""
        return {
            block_id: flatten(
                self.spec[block_id],
                {
                    name: parameter.detach().cpu().float().numpy()
                    for name, parameter in self._parameters[block_id].items()
                },
            )
            for block_id in block_ids
        }

    def replicate(self) -> "UnionAdapter":
        """Another adapter on the same frozen base: own adapter tensors, not one tensor of the base copied."""
        own = [tensor.name for block in self.spec.blocks for tensor in block.tensors]
        replica = UnionAdapter(replicate_modules(self.model, own=own), self.adapter, self.spec, seed=self.seed)
        replica._initial = self._initial
        return replica


def attach(model: nn.Module, adapter: Adapter, *, seed: int) -> UnionAdapter:
    """Graft the union adapter on ``model``, in place, and freeze everything else.

    Args:
        model: a Hugging Face classifier or causal language model; its dropout should be 0.
        adapter: which methods, where.
        seed: the run's; the adapter's initial values depend on it and on the model's module names only.

    Returns:
        The adapter, at its start: with the head and the methods that say otherwise aside, the model computes what
        it computed before.

    Raises:
        ConfigInvalid: the model cannot take one of the methods; says what it can take.
    """
    anatomy = dissect(model, adapter.layers if _by_default(adapter) else 0, adapter.slots)
    model.requires_grad_(False)
    blocks = [
        block
        for method, attach_method in ATTACH.items()
        for block in attach_method(
            anatomy.within(_range_of(adapter, method), wanted_by=f"adapter.{method}"), adapter, seed
        )
    ]
    if empty := sorted({block.method for block in blocks if not block.parameters}):
        listed = ", ".join(f"adapter.{method}" for method in empty)
        raise ConfigInvalid(
            f"Expected something to train for {listed} in the chosen layers of {type(model).__name__}, found nothing: "
            "they lack its matrices or norms; choose other layers or targets, or take the method out."
        )
    if not any(block.trainable for block in blocks):
        raise ConfigInvalid(
            "Expected an adapter with at least one method for this model; add [adapter.lora] to the run."
        )
    if adapter.dtype == "bfloat16":
        for parameter in (p for block in blocks if block.method != HEAD for p in block.parameters):
            parameter.data = parameter.data.to(torch.bfloat16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spec = AdapterSpec(blocks=tuple(_specify(block, names) for block in blocks))
    union = UnionAdapter(model, adapter, spec, seed=seed)
    union._initial = union.state()
    return union


def anatomy_of(model: nn.Module, adapter: Adapter) -> Anatomy:
    """The model's parts, ``first_layer`` the lowest that carries an adapter: none when only the head is trained."""
    anatomy = dissect(model, adapter.layers if _by_default(adapter) else 0, adapter.slots)
    return replace(anatomy, first_layer=adapter.lowest_layer(anatomy.layer_count))


def _range_of(adapter: Adapter, method: str) -> tuple[int, int] | None:
    """The layers that a present method asks for itself."""
    found: tuple[int, int] | None = getattr(getattr(adapter, method), "layers", None)
    return found


def _by_default(adapter: Adapter) -> bool:
    """Whether any method sits where ``adapter.layers`` says."""
    return any(_range_of(adapter, method.name) is None for method, _ in adapter.declared())


def _specify(block: Block, names: Mapping[int, str]) -> BlockSpec:
    tensors = tuple(
        TensorSpec(name=names[id(parameter)], shape=tuple(parameter.shape)) for parameter in block.parameters
    )
    return BlockSpec(block_id=block.block_id, method=block.method, tensors=tensors, trainable=block.trainable)
