"""What a transformer layer costs to train, by kind of layer. No torch.

``fedpeft.layout`` says where a layer's matrices are; here is what autograd keeps of one, and two fitted constants of
the memory model. Who reads them: ``fedpeft.planner``, through ``fedpeft.catalogue.base_shape``.
"""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "BERT_LIKE",
    "FAMILIES",
    "FIRST_TOKEN_ONLY",
    "LLAMA_LIKE",
    "Family",
    "LayerKind",
    "LayerWidths",
    "family_named",
    "family_of",
]

_MIB = 2**20

FIRST_TOKEN_ONLY = frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"})
"""Model types whose classifier reads the first token alone, and whose last layer can be computed for one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWidths:
    """What decides the activations of a layer.

    Args:
        hidden: of the residual stream.
        inner: of the MLP; with experts, of those that a token goes through.
        keys: of all keys together, which values are as wide as.
        heads: of attention.
    """

    hidden: int
    inner: int
    keys: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What tells a base's family.

    Args:
        model_type: of its config.json.
        matrices: the short names of the matrices that its layers have (``fedpeft.target_names``).
        has_experts: whether several MLPs share a layer.
    """

    model_type: str
    matrices: frozenset[str]
    has_experts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of layer.

    Args:
        name: as reports call it.
        has: whether a base's layers are of this kind; the first family of ``FAMILIES`` that says so is taken.
        kept_floats: floats a token that autograd keeps of one layer, exactly (tests count them).
        heap: what glibc holds on to, over what is kept: fitted (``fedpeft.planner.cost``).
        workspace_bytes: of kernels and of the loss: fitted.
    """

    name: str
    has: Callable[[LayerKind], bool]
    kept_floats: Callable[[LayerWidths], int]
    heap: float
    workspace_bytes: int


BERT_LIKE = Family(
    name="BERT-like",
    has=lambda layer: True,  # the last of all
    kept_floats=lambda of: 6 * of.hidden + of.inner + of.heads,
    heap=2.1,
    workspace_bytes=20 * _MIB,
)
"""An MLP of two matrices: BERT, GPT-2, OPT."""

LLAMA_LIKE = Family(
    name="Llama-like",
    has=lambda layer: "gate" in layer.matrices or layer.has_experts,
    kept_floats=lambda of: 4 * of.hidden + 2 * of.keys + 3 * of.inner + of.heads,
    heap=1.65,
    workspace_bytes=60 * _MIB,
)
"""A gated MLP: Llama, Mistral, Qwen, ModernBERT."""

FAMILIES: tuple[Family, ...] = (LLAMA_LIKE, BERT_LIKE)
"""The most special first."""


def family_of(layer: LayerKind) -> Family:
    """The family that a base's layers are of.

    Example:
        >>> family_of(LayerKind(model_type="qwen3", matrices=frozenset({"q", "gate"}), has_experts=False)).name
        'Llama-like'
    """
    return next(family for family in FAMILIES if family.has(layer))


def family_named(name: str) -> Family:
    """The family of this name.

    Raises:
        KeyError: there is none; names come from ``FAMILIES`` alone.
    """
    return {family.name: family for family in FAMILIES}[name]
