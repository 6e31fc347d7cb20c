"""What the low-rank methods share: which matrices they take, and the rows that a frozen A begins with."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import nn

from fedpeft.config.section import TargetName
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.methods.anatomy import Anatomy

__all__ = ["initial_rows", "target_modules", "width_of"]


def target_modules(
    anatomy: Anatomy, targets: tuple[TargetName, ...], *, wanted_by: str
) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every target in the chosen layers, slot by slot from the input up.

    Args:
        wanted_by: the section that names the targets, for the error.

    Raises:
        ConfigInvalid: the model lacks a target; the choices are listed.
    """
    for slot in targets:
        yield from anatomy.slot_modules(slot, wanted_by=wanted_by).items()


def width_of(host: nn.Module, side: str) -> int:
    """``in_features`` or ``out_features`` of a linear module, quantized or not."""
    width = getattr(host, side, None)
    if not isinstance(width, int):
        raise ConfigInvalid(f"Expected a linear module with {side}, found {type(host).__name__}.")
    return width


def initial_rows(
    label: str, path: str, *, rank: int, width: int, seed: int, wanted_by: str, gaussian: bool = False
) -> npt.NDArray[np.float32]:
    """The rows of A, (rank, width): drawn for this matrix from the run's seed, orthonormal or of norm one on average.

    The draw is row by row, so A at rank 4 is the first four rows of A at rank 8.

    Args:
        label: of the draw; no two factors share one.
        path: of the matrix.
        wanted_by: the section whose rank it is, for the error.

    Raises:
        ConfigInvalid: there are not so many orthogonal rows.
    """
    if rank > width:
        problem = Problem(where=f"{wanted_by}.rank", expected=f"at most {width}, the input of {path}", found=str(rank))
        raise ConfigInvalid("The rank of LoRA is above the width of a matrix.", problems=[problem])
    rows = generator(seed, label, path).standard_normal((rank, width))
    if gaussian:
        return np.asarray(rows / np.sqrt(width), np.float32)
    basis, triangle = np.linalg.qr(rows.T)  # (width, r): float64, so that float32 hides what LAPACKs differ in
    return np.asarray((basis * np.sign(np.diag(triangle))).T, np.float32, order="C")
