"""The model families whose layers can carry adapters: one record each, and nothing else to add one. No torch.

Families are told apart by structure and not by name, so that relatives fit too. A slot is the field's short name of a
matrix of a layer: q, k, v, o, up, down, gate. Who reads them: ``fedpeft.grafting.anatomy`` finds a model's parts,
``fedpeft.planner`` counts what a layer costs, ``fedpeft.tuning.stages`` knows what a classifier reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["FAMILIES", "Family", "LayerWidths", "Port", "family_named"]

_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Where a layer keeps one matrix.

    Args:
        path: of the module, inside a layer.
        part: the matrix is this part, from 0, of so many equal ones that share the module's output rows (a fused qkv).
        transposed: the module stores (d_in, d_out), as Conv1D does.

    Example:
        >>> Port(path="attn.c_attn", part=(1, 3), transposed=True).matrix_in((768, 2304))
        (768, 768)
    """

    path: str
    part: tuple[int, int] = (0, 1)
    transposed: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the module's weight is the matrix, no more and not turned."""
        return self.part == (0, 1) and not self.transposed

    def matrix_in(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(d_out, d_in) of the matrix in a module whose weight has this shape."""
        rows, columns = reversed(stored) if self.transposed else stored
        return rows // self.part[1], columns


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWidths:
    """What decides the activations of a layer.

    Args:
        hidden: of the residual stream.
        inner: of the MLP.
        keys: of all keys together, which values are as wide as.
        heads: of attention.
    """

    hidden: int
    inner: int
    keys: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family.

    Args:
        name: as reports and errors call it.
        ports: slot -> where the matrix is; a model that has them all is of the family.
        causal: whether a token sees only those before it.
        class_heads: paths of a classifier's own head, the first that is there.
        head_bias: whether the last matrix of the class head has a bias.
        deep_heads: model types whose class head has a dense layer before the output.
        first_token_only: model types whose classifier reads the first token alone.
        kept_floats: floats a token that autograd keeps of one layer, exactly (tests count them).
        heap: what glibc holds on to, over what is kept: fitted (``fedpeft.planner.cost``).
        workspace_bytes: of kernels and of the loss: fitted.
    """

    name: str
    ports: Mapping[str, Port]
    causal: bool
    class_heads: tuple[str, ...]
    head_bias: bool
    deep_heads: frozenset[str] = frozenset()
    first_token_only: frozenset[str] = frozenset()
    kept_floats: Callable[[LayerWidths], int]
    heap: float
    workspace_bytes: int


def _plain(**paths: str) -> Mapping[str, Port]:
    return MappingProxyType({slot: Port(path=path) for slot, path in paths.items()})


BERT_LIKE = Family(
    name="BERT-like",
    ports=_plain(
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        o="attention.output.dense",
        up="intermediate.dense",
        down="output.dense",
    ),
    causal=False,
    class_heads=("classifier",),
    head_bias=True,
    deep_heads=frozenset({"camembert", "electra", "roberta", "xlm-roberta"}),
    first_token_only=frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"}),
    kept_floats=lambda of: 6 * of.hidden + of.inner + of.heads,
    heap=2.1,
    workspace_bytes=20 * _MIB,
)
"""Encoders: BERT, RoBERTa, ELECTRA."""

LLAMA_LIKE = Family(
    name="Llama-like",
    ports=_plain(
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.o_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        gate="mlp.gate_proj",
    ),
    causal=True,
    class_heads=("score",),
    head_bias=False,
    kept_floats=lambda of: 4 * of.hidden + 2 * of.keys + 3 * of.inner + of.heads,
    heap=1.65,
    workspace_bytes=60 * _MIB,
)
"""Decoders: Llama, SmolLM, Mistral, Qwen2."""

FAMILIES: tuple[Family, ...] = (BERT_LIKE, LLAMA_LIKE)


def family_named(name: str) -> Family:
    """The family of this name.

    Raises:
        KeyError: there is none; names come from ``FAMILIES`` alone.
    """
    return {family.name: family for family in FAMILIES}[name]
