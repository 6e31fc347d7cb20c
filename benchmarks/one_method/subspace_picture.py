"""Heat maps of how much two adapters' subspaces have in common (LoRA paper, section 7.2), as one SVG."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

__all__ = ["directions", "drawn", "overlaps"]

Matrix = npt.NDArray[np.float64]
Factors = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
CELL, GAP, MARGIN, TOP, TALL = 4, 56, 34, 44, 256
LOW, HIGH = (247, 251, 255), (8, 48, 107)  # of 0 and of 1


def directions(factors: Factors, *, of: str) -> Matrix:
    """Orthonormal directions, (d, r), the most used first.

    Args:
        factors: A (r, d_in) and B (d_out, r).
        of: ``A``: right singular vectors of A, as in the paper, d = d_in; ``outputs``: left ones of B A, d = d_out.
    """
    down, up = (factor.astype(np.float64) for factor in factors)
    if of == "A":
        return np.asarray(np.linalg.svd(down, full_matrices=False)[2].T)
    basis, triangle = np.linalg.qr(up)  # B = Q R, so B A = Q (R A): no SVD of d_out x d_in
    return np.asarray(basis @ np.linalg.svd(triangle @ down, full_matrices=False)[0])


def overlaps(first: Factors, second: Factors, *, rows: int, columns: int, of: str) -> Matrix:
    """phi(i, j) = |U_i^T V_j|_F^2 / min(i, j) for i = 1..rows, j = 1..columns: 0 apart, 1 one within the other.

    U_i and V_j are the first i and j ``directions`` of the two.

    Example:
        >>> eye = np.eye(4, dtype=np.float32)
        >>> overlaps((eye[:2], eye[:, :2]), (eye[:2], eye[:, :2]), rows=2, columns=2, of="A")[1, 1]
        np.float64(1.0)
    """
    shared = (directions(first, of=of)[:, :rows].T @ directions(second, of=of)[:, :columns]) ** 2
    together = shared.cumsum(axis=0).cumsum(axis=1)  # (rows, columns): |U_i^T V_j|_F^2
    fewer = np.minimum(np.arange(1, rows + 1)[:, None], np.arange(1, columns + 1)[None, :])
    return np.asarray(together / fewer)


def drawn(lines: Sequence[Mapping[str, Matrix]], *, caption: str) -> str:
    """Lines of grids by their titles, each grid with i down and j across, and one scale of colours."""
    parts, right = [], 0
    for number, grids in enumerate(lines):
        x, top = MARGIN, TOP + number * (TALL + TOP)
        for title, grid in grids.items():
            parts.append(_heat_map(title, grid, x, top, TALL // len(grid)))
            x += CELL * grid.shape[1] + GAP
        right = max(right, x)
    parts.append(_scale(right, TALL))
    width, whole = right + 60, len(lines) * (TOP + TALL) + 40
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
        'aria-label="{c}" font-family="sans-serif" font-size="11" fill="#444"><title>{c}</title>'
        '<rect width="{w}" height="{h}" fill="#fff"/>'
    ).format(w=width, h=whole, c=caption)
    foot = Markup('<text x="{}" y="{}">{}</text></svg>\n').format(MARGIN, whole - 8, caption)
    return str(head + Markup("").join(parts) + foot)


def _heat_map(title: str, grid: Matrix, left: int, top: int, tall: int) -> Markup:
    rows, columns = grid.shape
    parts = [Markup('<text x="{}" y="{}" font-weight="bold">{}</text>').format(left, top - 26, title)]
    cell = Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>')
    # Neighbours of one colour are one rectangle: the file stays small.
    for i in range(rows):
        start = 0
        colours = [_colour(float(value)) for value in grid[i]]
        for j in range(1, columns + 1):
            if j == columns or colours[j] != colours[start]:
                parts.append(cell.format(left + CELL * start, top + tall * i, CELL * (j - start), tall, colours[start]))
                start = j
    tick = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    for j in (1, columns // 4, columns // 2, columns):
        parts.append(tick.format(left + CELL * (j - 0.5), top - 6, "middle", j))
    for i in sorted({1, rows // 2, rows}):
        parts.append(tick.format(left - 5, top + tall * (i - 0.5) + 4, "end", i))
    return Markup("").join(parts)


def _scale(left: int, height: int) -> Markup:
    cell = Markup('<rect x="{}" y="{:.1f}" width="12" height="{:.1f}" fill="{}"/>')
    steps = 20
    parts = [
        cell.format(left, TOP + height * (1 - (k + 1) / steps), height / steps + 0.2, _colour(k / (steps - 1)))
        for k in range(steps)
    ]
    tick = Markup('<text x="{}" y="{:.1f}">{}</text>')
    parts += [tick.format(left + 16, TOP + height * (1 - value) + 4, f"{value:g}") for value in (0.0, 0.5, 1.0)]
    return Markup("").join(parts)


def _colour(value: float) -> str:
    share = round(min(1.0, max(0.0, value)) * 32) / 32
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(LOW, HIGH, strict=True))
