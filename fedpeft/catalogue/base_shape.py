"""A base model by its numbers: all that costs are computed from."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.families import LayerWidths, family_named

__all__ = ["BaseShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """One base model, every layer alike.

    Args:
        name: its model type, e.g. ``bert``.
        family: its name in ``fedpeft.families``.
        layers: how many.
        hidden: width of the residual stream.
        heads: attention heads.
        vocabulary: rows of the token embedding.
        matrices: slot -> (d_out, d_in) of one layer.
        layer_biases: coordinates of all biases of one layer, norms included.
        norms: coordinates of all norm weights of one layer.
        norm_biases: coordinates of their biases.
        parameters: of the whole base, tied ones once.
        packed_bytes: of the weights as the artifact stores them.
        head_is_deep: whether the class head has a dense layer of its own.
        first_token_only: whether the classifier reads one token, so that the last layer computes little.
    """

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    matrices: Mapping[str, tuple[int, int]]
    layer_biases: int
    norms: int
    norm_biases: int
    parameters: int
    packed_bytes: int
    head_is_deep: bool
    first_token_only: bool

    @property
    def matrix_parameters(self) -> int:
        """Coordinates of the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.matrices.values())

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return self.matrices["up"][0]

    @property
    def key_width(self) -> int:
        """Width of keys, and of values: below ``hidden`` with grouped queries."""
        return self.matrices["k"][0]

    @property
    def dense_bytes(self) -> int:
        """The base in float32."""
        return 4 * self.parameters

    @property
    def kept_floats(self) -> int:
        """Floats a token that autograd keeps of one layer."""
        widths = LayerWidths(hidden=self.hidden, inner=self.inner, keys=self.key_width, heads=self.heads)
        return family_named(self.family).kept_floats(widths)

    def head_parameters(self, classes: int) -> int:
        """Coordinates of the class head."""
        if not family_named(self.family).head_bias:
            return self.hidden * classes
        deep = self.hidden * self.hidden + self.hidden if self.head_is_deep else 0
        return deep + self.hidden * classes + classes
