"""What the low-rank methods share: which matrices they take, the rows that A begins with, and the grafting."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpeft.catalogue.section import TargetName
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.grafting.anatomy import Anatomy
from fedpeft.grafting.graft import device_of, graft_output
from fedpeft.grafting.rows import width_of

__all__ = ["graft_rows", "initial_rows", "width_of"]

Part = TypeVar("Part", bound=nn.Module)


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


def graft_rows(
    anatomy: Anatomy,
    targets: tuple[TargetName, ...],
    make: Callable[[str, nn.Module, Tensor], Part],
    *,
    method: str,
    rank: int,
    seed: int,
    pooled: int = 1,
    gaussian: bool = False,
) -> list[Part]:
    """Grafts a part with its own A on every target of the chosen layers, and returns the parts in that order.

    Args:
        make: the part, of a matrix's path, its module and its A, (rank, d_in / pooled).
        method: the part's name, which is the section's too.
        pooled: neighbouring inputs that A reads as one.
        gaussian: see ``initial_rows``.

    Raises:
        ConfigInvalid: the model lacks a target, or there are not so many orthogonal rows.
    """
    section = f"adapter.{method}"
    parts: list[Part] = []
    for path, host in anatomy.target_modules(targets, wanted_by=section):
        width = width_of(host, "in_features") // pooled
        rows = initial_rows(
            f"{method}.A", path, rank=rank, width=width, seed=seed, wanted_by=section, gaussian=gaussian
        )
        part = make(path, host, torch.from_numpy(rows).to(device_of(host)))
        graft_output(host, method, part)
        parts.append(part)
    return parts
