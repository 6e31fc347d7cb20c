"""How much noise each device adds, on which grid, and in which ring (docs/privacy.md, "The mechanism").

The coordinator signs four numbers, ``NoiseTerms``; a device derives everything else from them and from the terms of
the sum, so all add the same share and none can be talked into less. A block is opened only if ``threshold``
organisations survive in it; of these ``colluders`` may hand their noise to the coordinator. The other
m = threshold - colluders honest shares alone must make the promised noise, so each has the variance (z C)^2 / m:
whoever drops out, an opened sum never has less noise than promised, and usually more.

The grid is uniform over all blocks, its step a power of two, so that rounding is exact and deterministic. With noise
the ring is used modulo 2^bits with signed numbers, without an offset: a sum of n devices is at most n C plus
8 standard deviations of all the noise, which must fit. Wrapping would cost accuracy, never privacy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.ids import BlockId
from fedpeft.privacy.accountant import Release
from fedpeft.privacy.clipping import rounding_allowance
from fedpeft.privacy.discrete_gaussian import MAX_SIGMA, discrete_gaussian
from fedpeft.privacy.noised_metrics import METRIC_LANES
from fedpeft.ring import InputRefused

__all__ = ["Mechanism", "NoiseTerms", "decode_sum", "noisy_words", "size_mechanism"]

NATIVE_BITS = (16, 32, 64)
TAIL = 8.0
"""Standard deviations that must fit into the ring: beyond lie 10^-15 of all coordinates."""

MIN_SHARE_SIGMA = 4.0
"""From here on tau is below 10^-60: a sum of shares is a discrete Gaussian for every purpose."""

MAX_ALLOWANCE = 0.05
"""The grid may cost at most this part of the clip norm; a coarser one drowns the signal for nothing."""

PIECE = 1 << 15
"""Coordinates encoded at once: the temporaries stay in the second-level cache."""

Words = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTerms:
    """What the coordinator signs about the noise; part of ``RoundSpec``.

    Args:
        l2_clip_norm: C: every device clips its concatenated contribution to this.
        noise_multiplier: z: standard deviation of the least noise in an opened sum, over C.
        colluders: devices that may tell the coordinator their noise; their shares do not count.
        step: of the grid; a power of two.
        bit_weight: w, of adaptive clipping: each device adds w or -w in a block of its own, whether its norm was within
            C (``fedpeft.privacy.adaptive``); a multiple of the step, or 0: nothing.
        metric_weight: b, of each lane of noised metrics (``fedpeft.privacy.noised_metrics``); likewise.
    """

    l2_clip_norm: float
    noise_multiplier: float
    colluders: int
    step: float
    bit_weight: float = 0.0
    metric_weight: float = 0.0

    @property
    def sensitivity(self) -> float:
        """S: the most by which one client moves the sum, its bit and its metrics included."""
        return math.hypot(self.l2_clip_norm, self.bit_weight, math.sqrt(METRIC_LANES) * self.metric_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """The terms of the noise with the numbers of the sum that they rest on.

    Args:
        terms: as signed.
        devices: n: the roster.
        threshold: organisations that must survive in a block before it is opened.
        bits: of the ring.
        parameters: d: coordinates of all blocks together.

    Guarantees:
        Any survivor set that opens a block holds at least the promised noise:
        tests/privacy/test_mechanism.py::test_every_admissible_survivor_set_has_the_promised_noise.
        The sum fits into the ring: test_the_largest_sum_fits_into_the_ring.
    """

    terms: NoiseTerms
    devices: int
    threshold: int
    bits: int
    parameters: int

    @property
    def shares(self) -> int:
        """m: honest shares in the smallest sum that is opened."""
        return self.threshold - self.terms.colluders

    @property
    def share_sigma(self) -> float:
        """The discrete Gaussian's parameter on each device, in steps."""
        terms = self.terms
        return terms.noise_multiplier * terms.sensitivity / (terms.step * math.sqrt(self.shares))

    @property
    def allowance(self) -> float:
        """What rounding may add to a contribution's norm."""
        return rounding_allowance(self.terms.step, self.parameters)

    @property
    def release(self) -> Release:
        """One round, for the accountant."""
        return Release(
            noise_multiplier=self.terms.noise_multiplier,
            shares=self.shares,
            share_sigma=self.share_sigma,
            parameters=self.parameters,
            devices=self.devices,
        )

    def problems(self) -> list[Problem]:
        """Everything for which these terms must be refused."""
        terms = self.terms
        numbers = (terms.l2_clip_norm, terms.noise_multiplier, terms.step)
        if not all(0 < number < math.inf for number in numbers) or not all(
            0 <= weight < math.inf for weight in (terms.bit_weight, terms.metric_weight)
        ):
            return [
                Problem(where="noise", expected="a finite clip norm, noise multiplier and step > 0", found=f"{terms}")
            ]
        found = []
        if self.shares < 1:
            found.append(
                Problem(
                    where="noise.colluders",
                    expected=f"fewer than the {self.threshold} organisations that open a block",
                    found=str(terms.colluders),
                    remedy="Raise secagg.min_cohort or assume fewer colluders.",
                )
            )
            return found
        if math.frexp(terms.step)[0] != 0.5:
            found.append(Problem(where="noise.step", expected="a power of two", found=str(terms.step)))
        # What lies on the grid is not lengthened by rounding: only so does C - allowance suffice for the rest.
        for name, weight in (("bit_weight", terms.bit_weight), ("metric_weight", terms.metric_weight)):
            if not (weight / terms.step).is_integer():
                expected = f"0, or a multiple of the step {terms.step:g}"
                found.append(Problem(where=f"noise.{name}", expected=expected, found=f"{weight:g}"))
        if self.bits not in NATIVE_BITS:
            found.append(Problem(where="bits", expected=f"one of {NATIVE_BITS} with noise", found=str(self.bits)))
        return found + self._range_problems()

    def _range_problems(self) -> list[Problem]:
        terms, found = self.terms, []
        remedy = "Use secagg.bits = 32, or fewer trained parameters."
        largest = self.devices * terms.sensitivity / terms.step + TAIL * math.sqrt(self.devices) * self.share_sigma
        if not largest < 2 ** (self.bits - 1):
            found.append(
                Problem(
                    where="noise.step",
                    expected=f"nC + {TAIL:g} standard deviations below 2^{self.bits - 1} steps",
                    found=f"2^{math.log2(largest):.1f}",
                    remedy=remedy,
                )
            )
        if not MIN_SHARE_SIGMA <= self.share_sigma <= MAX_SIGMA:
            found.append(
                Problem(
                    where="noise.step",
                    expected=f"a share of {MIN_SHARE_SIGMA:g} to 2^{math.log2(MAX_SIGMA):.0f} steps",
                    found=f"{self.share_sigma:.3g}",
                    remedy=remedy,
                )
            )
        if self.allowance > MAX_ALLOWANCE * terms.l2_clip_norm:
            found.append(
                Problem(
                    where="secagg.bits",
                    expected=f"a grid whose rounding costs at most {MAX_ALLOWANCE:.0%} of the clip norm",
                    found=f"{self.bits} bits, {self.devices} devices and {self.parameters} parameters: "
                    f"{self.allowance / terms.l2_clip_norm:.0%}",
                    remedy=remedy,
                )
            )
        return found


def size_mechanism(
    *,
    l2_clip_norm: float,
    noise_multiplier: float,
    colluders: int,
    devices: int,
    threshold: int,
    bits: int,
    parameters: int,
    bit_weight: float = 0.0,
    metric_weight: float = 0.0,
) -> Mechanism:
    """The mechanism on the finest grid that the ring holds; arguments as in ``NoiseTerms`` and ``Mechanism``.

    Raises:
        ConfigInvalid: no grid does, with the reason and the nearest setting that works.
    """
    terms = NoiseTerms(
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=noise_multiplier,
        colluders=colluders,
        step=1.0,
        bit_weight=bit_weight,
        metric_weight=metric_weight,
    )
    draft = Mechanism(terms=terms, devices=devices, threshold=threshold, bits=bits, parameters=parameters)
    if draft.shares >= 1 and 0 < noise_multiplier < math.inf and 0 < l2_clip_norm < math.inf:
        share = draft.share_sigma  # at step 1: in the units of the contribution
        largest = devices * terms.sensitivity + TAIL * math.sqrt(devices) * share
        step = max(largest / (2 ** (bits - 1) - 1), share / MAX_SIGMA)
        draft = replace(draft, terms=_on_grid(terms, 2.0 ** math.ceil(math.log2(step))))
    problems = draft.problems()
    if problems:
        raise ConfigInvalid("No grid gives this noise in this ring.", problems=problems)
    return draft


def _on_grid(terms: NoiseTerms, step: float) -> NoiseTerms:
    """The terms on a grid of this step, the weights rounded down to it, though to no less than one step.

    With very many devices the weight of the bit, which falls as 1 / n, is finer than the grid, which grows with n.
    Whatever the weights are, the sensitivity is computed from them.
    """

    def rounded(weight: float) -> float:
        return max(1.0, math.floor(weight / step)) * step if weight else 0.0

    return replace(terms, step=step, bit_weight=rounded(terms.bit_weight), metric_weight=rounded(terms.metric_weight))


def noisy_words(
    vectors: Mapping[BlockId, npt.NDArray[np.float32]], mechanism: Mechanism, entropy: Entropy
) -> dict[BlockId, Words]:
    """One device's contribution on the grid, with its share of the noise, as ring words to be masked.

    Args:
        vectors: the whole contribution, clipped to C - allowance; with a bit weight also the bit's block.
        mechanism: as the terms say.
        entropy: cryptographic, never used before: a second contribution under the same noise reveals the difference.

    Raises:
        InputRefused: NaN, infinity, or a contribution that is longer than S on the grid: it was not clipped.

    Guarantees:
        Nothing longer than C is ever encoded:
        tests/privacy/test_mechanism.py::test_a_contribution_that_was_not_clipped_is_refused.
    """
    step, squares = mechanism.terms.step, 0.0
    # Wide enough for whatever is not refused below: C / step < 2^(bits - 1), by the range that problems() checks.
    signed = np.dtype(np.int64 if mechanism.bits > 32 else np.int32)
    words: dict[BlockId, Words] = {}
    scaled, whole, steps = np.empty(PIECE, np.float32), np.empty(PIECE), np.empty(PIECE, signed)
    for block_id, vector in vectors.items():
        moved = discrete_gaussian(mechanism.share_sigma, len(vector), entropy).astype(signed, copy=False)
        for start in range(0, len(vector), PIECE):
            piece = vector[start : start + PIECE]
            x, exact, integers = scaled[: len(piece)], whole[: len(piece)], steps[: len(piece)]
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows makes the norm too large
                # Safe: a step that is a power of two makes the product exact; so rint is the only rounding.
                np.multiply(piece, np.float32(1.0 / step), out=x)
                np.rint(x, out=x)
                np.copyto(exact, x)
                squares += float(np.dot(exact, exact))
                np.copyto(integers, x, casting="unsafe")
            moved[start : start + PIECE] += integers
        word = np.dtype(f"<u{mechanism.bits // 8}")
        words[block_id] = moved.view(word) if word.itemsize == signed.itemsize else moved.astype(word)  # modulo 2^bits
    if not math.isfinite(squares):
        raise InputRefused("Expected finite numbers, found NaN or inf; nothing was contributed.")
    limit = mechanism.terms.sensitivity / step
    if not math.sqrt(squares) * (1 + 2.0**-32) <= limit:  # the margin covers what the sum of 2^20 squares rounds
        raise InputRefused(
            f"Expected a contribution clipped to {mechanism.terms.sensitivity:g}, found a norm of "
            f"{math.sqrt(squares) * step:g} on the grid; clip it with the allowance for rounding."
        )
    return words


def decode_sum(words: Words, step: float) -> npt.NDArray[np.float64]:
    """The noisy sum that unmasked words hold, (P,) float64."""
    signed = words.view(np.dtype(f"<i{words.dtype.itemsize}"))
    return signed.astype(np.float64) * step
