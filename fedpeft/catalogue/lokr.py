"""[adapter.lokr]: its settings, costs and documentation; the torch part is ``fedpeft.methods.lokr``."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

from pydantic import Field

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.common import MEAN, TARGETS, inputs_of, of_every_token, present
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method import BOTH, Export, Method, MethodRow
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import UNMEASURED
from fedpeft.catalogue.section import TargetName
from fedpeft.ids import BlockId

__all__ = ["METHOD", "KroneckerShape", "LoKr", "kronecker_shape"]


class LoKr(MethodSection):
    """LoKr (Yeh 2024): the Kronecker product of a small matrix and a low-rank one: few values, high rank."""

    rank: int = Field(default=8, ge=1, le=1024, description="Of the second factor; whole where that is no larger.")
    targets: tuple[TargetName, ...] = Field(default=("auto",), min_length=1, description=TARGETS)
    scale: float = Field(default=2.0, gt=0, description="The factor of the product, the same for every device.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KroneckerShape:
    """The factors of one matrix: C (rows, columns) and D (inner_rows, inner_columns), C (x) D as large as it.

    Args:
        whole: whether D is trained as it is, since its low-rank form would not be smaller.
    """

    rows: int
    columns: int
    inner_rows: int
    inner_columns: int
    whole: bool


def kronecker_shape(out: int, width: int, rank: int) -> KroneckerShape:
    """How a matrix (out, width) splits: each side as near to its square root as its divisors allow, as peft does.

    Example:
        >>> kronecker_shape(384, 1536, 4)
        KroneckerShape(rows=16, columns=32, inner_rows=24, inner_columns=48, whole=False)
    """
    rows, columns = _near_root(out), _near_root(width)
    inner_rows, inner_columns = out // rows, width // columns
    whole = rank >= max(inner_rows, inner_columns) / 2
    return KroneckerShape(rows=rows, columns=columns, inner_rows=inner_rows, inner_columns=inner_columns, whole=whole)


def footprint(shape: BaseShape, settings: LoKr) -> Footprint:
    """C and D; keeps the input, D x, and D where it is made of two factors."""
    splits = _splits(settings, present(shape, settings.targets))
    first = _splits(settings, of_every_token(shape, settings.targets))
    inner = [
        one.inner_rows * one.inner_columns if one.whole else settings.rank * (one.inner_rows + one.inner_columns)
        for one in splits
    ]
    return Footprint(
        blocks={BlockId("lokr"): sum(one.rows * one.columns for one in splits) + sum(inner)},
        kept=sum(one.inner_rows * one.inner_columns for one in splits if not one.whole),
        saved=inputs_of(shape, settings.targets) + sum(one.columns * one.inner_rows for one in splits),
        saved_first_token=sum(one.columns * one.inner_rows for one in first),
        flops=sum(2 * one.columns * one.inner_rows * (one.inner_columns + one.rows) for one in splits),
    )


def _splits(settings: LoKr, matrices: Iterable[tuple[int, int]]) -> list[KroneckerShape]:
    return [kronecker_shape(out, width, settings.rank) for out, width in matrices]


def _near_root(size: int) -> int:
    """The largest divisor up to the square root."""
    return next(divisor for divisor in range(isqrt(size), 0, -1) if size % divisor == 0)


METHOD = Method(
    name="lokr",
    section=LoKr,
    example=LoKr(rank=1),
    footprint=footprint,
    row=MethodRow(
        title="LoKr: a Kronecker product",
        formula="W x + b + scale * (C (x) D) x, D = D_b D_a",
        paper="Yeh 2024 (LyCORIS)",
        attaches="chosen matrices of the adapted layers",
        summed=MEAN,
        example_dp="vector-Jacobian products of each matrix, one example at a time in one pass",
        export="PEFT LOKR; beside another method of matrices or biases in union.safetensors only",
        served_by=("peft",),
    ),
    opacus=UNMEASURED,
    export=Export(peft_type="LOKR", alone=BOTH),
)
