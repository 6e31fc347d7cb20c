"""What a device is made of: the protocols behind ``Device``, and what it keeps between two messages.

The trainer knows models and data, the session knows the secure sum, the store outlives the process; the
device (``fedpeft.round.device.device``) only knows the order of things.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.entropy import Entropy
from fedpeft.ids import SIZELESS, BlockId, SizeClass
from fedpeft.privacy import NoiseStream, SampledRelease
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import Work

__all__ = [
    "DeviceStore",
    "Effort",
    "ForwardingTrainer",
    "Identity",
    "LocalResult",
    "SumSession",
    "Trainer",
]

Vector = npt.NDArray[np.float32]


class Effort(enum.IntEnum):
    """How a device goes about a round, from its first try on."""

    FULL = 0
    CAREFUL = 1  # what it has learnt not to fit: one example at a time, nothing cached; the same result
    BLANK = 2  # no example is touched: under example-level privacy the steps are noise alone, else nothing is trained


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    """What local training gave; stays on the device.

    Args:
        deltas: trained values minus received ones, for each block that was trained.
        trained_loss, trained: loss summed over the examples (tokens) seen, and their number.
        evaluated_loss, correct, evaluated: of the received state, on held-out examples (tokens).
        lanes: means of the task's measure over the held-out examples, each with its weight, (lanes,); None: none.
        probes: in the round that measures the learning rate, the mean held-out loss of the mean model at each of its
            multiples, nats (``fedpeft.round.rates.search``); None in any other.
        troubles: what went wrong on the way and was passed over, e.g. rows that do not fit the task.
        noise: where the device's correlated noise is after these steps; None: they took none of it.
    """

    deltas: Mapping[BlockId, Vector]
    trained_loss: float
    trained: int
    evaluated_loss: float
    correct: int
    evaluated: int
    lanes: npt.NDArray[np.float64] | None = None
    probes: npt.NDArray[np.float64] | None = None
    troubles: tuple[str, ...] = ()
    noise: NoiseStream | None = None


class Trainer(Protocol):
    """The part that knows models and data: ``fedpeft_client.training.trainer`` with torch."""

    @property
    def methods(self) -> str:
        """What it trains, for reports."""
        ...

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """The adapter that this plan makes on this device's own copy of the base.

        Raises:
            FedpeftError: the base is missing or the plan cannot be built here.
        """
        ...

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """The state that this plan begins with, made on this device's own copy of the base."""
        ...

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """The blocks that this device can afford to train."""
        ...

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """Its public size (``fedpeft.round.size_class``); the same over a whole run, whatever its data does."""
        ...

    def evaluates(self, plan: LearningPlan) -> bool:
        """Whether it has held-out examples, which is public too, and the same over a whole run."""
        ...

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """What a round of training costs each of its examples; None without example-level privacy.

        With correlated noise: what the first round does (``fedpeft.round.example_privacy``).

        Raises:
            ConfigInvalid: the plan's budget fits no noise, or not this device's number of examples.
        """
        ...

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """Evaluate ``state``, then train its own blocks from it, as the work says.

        May raise anything: it has touched the examples, and the device says nothing of it.
        """
        ...


@dataclass(frozen=True, slots=True)
class ForwardingTrainer:
    """``Trainer`` whose every answer is the inner one's, but for what a subclass adds.

    Args:
        inner: trains and evaluates.
    """

    inner: Trainer

    @property
    def methods(self) -> str:
        """See ``Trainer``."""
        return self.inner.methods

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        return self.inner.spec(plan)

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """See ``Trainer``."""
        return self.inner.first_state(plan)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        return self.inner.trains(plan)

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """See ``Trainer``."""
        return self.inner.size_class(plan)

    def evaluates(self, plan: LearningPlan) -> bool:
        """See ``Trainer``."""
        return self.inner.evaluates(plan)

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``."""
        return self.inner.cost(plan)

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``."""
        return self.inner.fit(plan, state, work, effort)


class DeviceStore(Protocol):
    """A device's small key-value store: the blocks that it holds, and the inputs of the open round."""

    def read(self, key: str) -> bytes | None:
        """The value, or None."""
        ...

    def write(self, key: str, value: bytes) -> None:
        """Durable when it returns."""
        ...


class SumSession(Protocol):
    """The device's half of the secure sum: ``secagg.DeviceSession``."""

    def examine(self, offer: secagg.RoundOffer) -> secagg.RoundSpec | secagg.Refusal:
        """The signed terms of an offer that this device may answer."""
        ...

    @property
    def coordinator(self) -> bytes:
        """The enrolled coordinator's public key."""
        ...

    def mark(self, run_id: str) -> secagg.HighWaterMark | None:
        """How far this device has gone in a run; None: it never took part."""
        ...

    def begin(
        self,
        offer: secagg.RoundOffer,
        *,
        owns: frozenset[BlockId],
        entropy: Entropy,
        weight_class: SizeClass = SIZELESS,
    ) -> secagg.Reply:
        """Check the terms and advertise fresh keys."""
        ...

    def answer(
        self,
        run_id: str,
        request: secagg.Request,
        *,
        inputs: Callable[[], Mapping[BlockId, Vector]],
        rounding: Entropy,
        before_masking: Callable[[], None],
    ) -> secagg.Reply:
        """Answer one later stage; a repeated request gets the same reply."""
        ...

    def agreed(self, run_id: str) -> secagg.AgreedSum | None:
        """The sum that this device has signed for and not revealed of yet; None if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a device is, as enrolled.

    Args:
        device: its name, unique in the federation.
        organisation: who runs it.
        public_key: Ed25519, 32 bytes; the private half is the session's.
    """

    device: str
    organisation: str
    public_key: bytes
