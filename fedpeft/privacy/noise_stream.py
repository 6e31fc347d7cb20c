"""One device's correlated noise in one run: a secret that lasts from its first step to its last.

Step t gets w_t = z_t - round(c_1 w_(t-1) + ... + c_(b-1) w_(t-b+1)), in steps of the grid: z_t is discrete Gaussian
and fresh from the operating system, and w_t is what was really added, so the steps' sums stay whole numbers. Of the
past the next step needs the last b - 1 rows, which are kept on the device; whoever has them can take noise out of later
updates.

The rounding. Two runs that differ in a unit have, for the same releases, other rows at the unit's steps, and so other
roundings in the b - 1 steps after them: by one at most in every coordinate. Together with C's column that is a shift of
at most column norm * length + sqrt((b - 1) P), which ``NoiseScale.bound`` leaves room for.

Nothing is used twice: a row goes with one step, a step is charged before its row is kept, and a row is kept before what
it was added to can leave (``fedpeft.round.example_privacy``). After a crash in between, or with an older copy of the
rows, another stream begins, and is charged from its first step.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.ids import BlockId
from fedpeft.privacy.correlated import coefficients
from fedpeft.privacy.discrete_gaussian import discrete_gaussian
from fedpeft.privacy.sampled_gaussian import NOISE_STEPS
from fedpeft.wire import message

__all__ = ["CorrelatedNoise", "NoiseStream"]

KEY_SIZE = 32

Rows = npt.NDArray[np.int64]


@message(0x0194, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseStream:
    """Store record: where a device is in its noise.

    Args:
        run_id: which run.
        name: unique; in the labels of what was charged for it. No secret.
        blocks: whose coordinates each row covers, one after the other.
        bands: b, >= 2.
        momentum: that its matrix is shaped for.
        key: secret: divides the units into groups.
        taken: steps so far.
        rows: the noise of the last ones, the newest first, int32 little-endian; min(taken, b - 1) of them.
    """

    run_id: str
    name: str
    blocks: tuple[BlockId, ...]
    bands: int
    momentum: float
    key: bytes
    taken: int
    rows: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"<noise stream {self.name} of {self.run_id} after {self.taken} steps>"

    @classmethod
    def begin(cls, run_id: str, blocks: Iterable[BlockId], *, bands: int, momentum: float, entropy: Entropy) -> Self:
        """Before the first step."""
        return cls(
            run_id=run_id,
            name=entropy(8).hex(),
            blocks=tuple(blocks),
            bands=bands,
            momentum=momentum,
            key=entropy(KEY_SIZE),
            taken=0,
            rows=(),
        )

    @classmethod
    def nothing(cls) -> Self:
        """Of no run: takes the place of one that is let go."""
        return cls(run_id="", name="", blocks=(), bands=2, momentum=0.0, key=b"", taken=0, rows=())

    @property
    def mark(self) -> str:
        """Names the stream and its place, in the label of a charge."""
        return f"{self.name}@{self.taken}"

    def whole(self, parameters: int) -> bool:
        """Whether every row is there that the next step needs."""
        return len(self.rows) == min(self.taken, self.bands - 1) and {len(row) for row in self.rows} <= {4 * parameters}


class CorrelatedNoise:
    """A stream at work: one row for each step, in order.

    Args:
        stream: where it is.
        parameters: P: coordinates of all of its blocks.

    Guarantees:
        The rows are C^-1 z, and no row depends on a later z:
        tests/privacy/test_correlated.py::test_the_rows_are_the_inverse_of_the_matrix_and_causal.

    Raises:
        ValueError: rows are missing.
    """

    def __init__(self, stream: NoiseStream, parameters: int) -> None:
        if not stream.whole(parameters):
            raise ValueError(f"Expected the last rows of noise of {parameters} coordinates, found others: {stream!r}.")
        self._stream, self._parameters = stream, parameters
        self._behind = coefficients(stream.bands, stream.momentum)[1:]
        self._rows: list[Rows] = [np.frombuffer(row, "<i4").astype(np.int64) for row in stream.rows]  # the newest first

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """Whose coordinates a row has."""
        return self._stream.blocks

    @property
    def group(self) -> int:
        """The group that the next step takes from."""
        return self._stream.taken % self._stream.bands

    def group_of(self, unit: bytes) -> int:
        """The group of a unit, by what it is: wherever in its data set it stands, and whoever else is in it."""
        mixed = hashlib.blake2b(unit, key=self._stream.key, digest_size=8).digest()
        return int.from_bytes(mixed, "little") % self._stream.bands

    def next_row(self, entropy: Entropy) -> Rows:
        """The noise of the next step, in steps of the grid, (P,)."""
        row: Rows = discrete_gaussian(NOISE_STEPS, self._parameters, entropy).astype(np.int64)
        if self._rows:
            taken_back = np.zeros(self._parameters)
            for c, earlier in zip(self._behind, self._rows, strict=False):
                taken_back += c * earlier
            row -= np.rint(taken_back).astype(np.int64)
        self._rows = [row, *self._rows][: len(self._behind)]
        self._stream = replace(self._stream, taken=self._stream.taken + 1)
        return row

    def stream(self) -> NoiseStream:
        """Where it is now, to be kept.

        Raises:
            OverflowError: a row is 256 standard deviations long.
        """
        if any(int(np.abs(row).max(initial=0)) >= 2**31 for row in self._rows):
            raise OverflowError("Expected noise below 2^31 steps of its grid, found more.")
        return replace(self._stream, rows=tuple(row.astype("<i4").tobytes() for row in self._rows))
