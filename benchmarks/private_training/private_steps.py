"""One device's private steps with the product's noise, sample and calibration, on sums of clipped gradients."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId
from fedpeft.privacy import NoiseStream
from fedpeft.round.example_privacy import noise_of
from fedpeft.round.plan import ExampleTerms
from fedpeft.round.size_class import size_class
from fedpeft.secagg.masks import noise_bytes
from fedpeft.secagg.primitives import KEY_SIZE
from fedpeft.tuning import NoiseScale
from fedpeft.tuning.batches import Indices
from fedpeft.tuning.dp_sgd_mechanism import Turns, poisson_sample, with_noise

__all__ = ["PrivateSteps"]

ALL = BlockId("all")


class PrivateSteps:
    """Of a run, in order.

    Args:
        terms: of the plan; its unit is what ``units`` are.
        batch: expected.
        units: what each of the device's units is.
        size: coordinates.
        counted: that every method is accounted for.
    """

    def __init__(self, terms: ExampleTerms, batch: int, units: Sequence[bytes], *, size: int, counted: int) -> None:
        self.noise = noise_of(terms, batch, size_class(len(units)), counted)
        z, rate, bands = self.noise
        momentum = terms.momentum if bands > 1 else 0.0
        self._count, self._size, self._turns = len(units), size, None
        self._scale = NoiseScale(
            l2_clip_norm=terms.l2_clip_norm, noise_multiplier=z, sampling_rate=rate, bands=bands, momentum=momentum
        )
        if bands > 1:
            stream = NoiseStream.begin("benchmark", [ALL], bands=bands, momentum=momentum, entropy=os_entropy)
            self._turns = Turns(stream, self._scale, units, {ALL: size}, [ALL])

    def mean_gradient(self, summed: Callable[[Indices, float], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """The next step's, over the expected batch.

        Args:
            summed: the gradients of these units, each clipped to that norm, summed.
        """
        members = np.arange(self._count) if self._turns is None else self._turns.members()
        taken = members[poisson_sample(len(members), self._scale.sampling_rate, os_entropy)]
        total = summed(taken, self._scale.bound(self._size))
        noisy = with_noise(total / self._scale.grid, self._scale, noise_bytes(os_entropy(KEY_SIZE)), self._turns)
        return noisy / (self._scale.sampling_rate * self._count / self.noise.bands)
