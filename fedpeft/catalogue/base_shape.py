"""A base model by its numbers: all that costs are computed from."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from fedpeft.families import LayerWidths, family_named
from fedpeft.layout import Layout, Port

__all__ = ["BaseShape", "Vectors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What a layer has beside its matrices, in coordinates.

    Args:
        biases: all of them, those of norms included.
        norms: weights of all norms.
        norm_biases: their biases.
    """

    biases: int
    norms: int
    norm_biases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """One base model, and one of its layers that is looked at.

    Args:
        name: its model type, e.g. ``bert``.
        family: what its layers cost, by name in ``fedpeft.families``.
        layout: where its layers keep their matrices.
        vectors: of each layer.
        causal: whether a token sees only those before it.
        hidden: width of the residual stream.
        inner: width of the MLP; with experts, of those that a token goes through.
        key_width: of keys, and of values: below ``hidden`` with grouped queries.
        heads: attention heads.
        vocabulary: rows of the token embedding.
        passes: how often a token goes through each layer (ALBERT: more than once).
        experts: coordinates of expert matrices of a layer that a token goes through.
        experts_a_token: how many of a layer's experts a token goes through.
        parameters: of the whole base, tied ones once.
        packed_bytes: of the weights as the artifact stores them.
        head_once, head_a_class: coordinates of the class head: those that the number of classes does not change,
            and those of one class.
        first_token_only: whether the classifier reads one token, so that the last layer computes little.
        counted: floats that autograd keeps for a token in one layer at some lengths of text, ascending; empty: the
            family's formula.
        at: the layer that is looked at, from 0.
        norm_biases_taken: whether they are another method's.
    """

    name: str
    family: str
    layout: Layout
    vectors: tuple[Vectors, ...]
    causal: bool
    hidden: int
    inner: int
    key_width: int
    heads: int
    vocabulary: int
    passes: int = 1
    experts: int = 0
    experts_a_token: int = 0
    parameters: int
    packed_bytes: int
    head_once: int
    head_a_class: int
    first_token_only: bool
    counted: tuple[tuple[int, float], ...] = ()
    at: int = 0
    norm_biases_taken: bool = False

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.layout)

    def looking_at(self, index: int) -> "BaseShape":
        """The same model, another layer."""
        return replace(self, at=index)

    def ports(self, targets: Iterable[str]) -> tuple[Port, ...]:
        """The matrices of this layer that the targets name, each once."""
        return self.layout.selected(self.at, targets)

    def matrices(self, targets: Iterable[str]) -> list[tuple[int, int]]:
        """(d_out, d_in) of these."""
        return [self.layout.layers[self.at].shape(port) for port in self.ports(targets)]

    def passed(self, targets: Iterable[str]) -> list[tuple[int, int]]:
        """(d_out, d_in) of those that one token goes through: of experts a few."""
        ports = (one for one in self.ports(targets) if one.expert is None or one.expert < self.experts_a_token)
        return [self.layout.layers[self.at].shape(port) for port in ports]

    def has(self, *slots: str) -> bool:
        """Whether this layer has all these matrices by their short names."""
        return all(slot in self.layout.layers[self.at].slots for slot in slots)

    @property
    def layer_biases(self) -> int:
        """Coordinates of all biases of this layer, norms included."""
        return self.vectors[self.at].biases

    @property
    def norms(self) -> int:
        """Coordinates of all norm weights of this layer."""
        return self.vectors[self.at].norms

    @property
    def norm_biases(self) -> int:
        """Coordinates of their biases, unless they are another method's."""
        return 0 if self.norm_biases_taken else self.vectors[self.at].norm_biases

    @property
    def matrix_parameters(self) -> int:
        """Coordinates of the matrices of a layer that a token goes through, the mean over the layers."""
        every = sum(rows * columns for layer in self.layout.layers for rows, columns in layer.matrices.values())
        return every // self.layers + self.experts

    @property
    def dense_bytes(self) -> int:
        """The base in float32."""
        return 4 * self.parameters

    def kept_floats(self, length: int) -> float:
        """Floats a token that autograd keeps of one layer, of a text of ``length`` tokens."""
        if self.counted:
            return self.passes * _for_a_token(self.counted, length)
        return self.formula_floats

    @property
    def formula_floats(self) -> int:
        """What the family's formula says of that."""
        widths = LayerWidths(hidden=self.hidden, inner=self.inner, keys=self.key_width, heads=self.heads)
        return self.passes * family_named(self.family).kept_floats(widths)

    def head_parameters(self, classes: int) -> int:
        """Coordinates of the class head."""
        return self.head_once + self.head_a_class * classes


def _for_a_token(points: Sequence[tuple[int, float]], length: int) -> float:
    """Straight lines through what whole texts keep, which never falls with their length, and on as the last one goes.

    Not through what a token keeps: of a scan in chunks a text of any length keeps a chunk, so that a token of a long
    text keeps little, and a line through two such points soon says nothing at all.
    """
    totals = list(accumulate((at * each for at, each in points), max))
    lengths = [at for at, _ in points]
    if len(points) == 1:
        return points[0][1]
    right = min(bisect_left(lengths, length, lo=1), len(points) - 1)
    slope = (totals[right] - totals[right - 1]) / (lengths[right] - lengths[right - 1])
    return max(1.0, totals[right] + slope * (length - lengths[right])) / max(1, length)
