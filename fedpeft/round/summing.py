"""The coordinator's half of one secure sum as the round drives it: one object with stages."""

from collections.abc import Callable, Mapping
from typing import Protocol, Self

from fedpeft import secagg
from fedpeft.entropy import Entropy
from fedpeft.ids import ParticipantId
from fedpeft.secagg.coordinator_state import Requests
from fedpeft.secagg.primitives import Secret, is_signed
from fedpeft.secagg.transcript import offer_context

__all__ = ["OpenSum", "SecureSum", "SumRound"]


class SumRound(Protocol):
    """The coordinator's half of one secure sum: ``SecureSum``; another one only to measure what it costs."""

    @property
    def stage(self) -> str:
        """What is asked now: ``fit``, ``share``, ``mask``, ``consist`` or ``reveal``."""
        ...

    @property
    def requests(self) -> Mapping[ParticipantId, secagg.Request]:
        """What to send to whom in this stage: to those who have neither answered it nor fallen out."""
        ...

    def pending(self) -> Secret:
        """In ``consist`` and ``reveal``: all that a restarted coordinator needs to have this very sum opened."""
        ...

    @property
    def answered(self) -> int:
        """How many have answered this stage, and well."""
        ...

    def receive(self, sender: ParticipantId, reply: secagg.Reply) -> None:
        """Take one reply; a bad one counts against its sender."""
        ...

    def fail(self, sender: ParticipantId, detail: str) -> None:
        """Take note that a device will not answer."""
        ...

    def close_stage(self) -> secagg.Summed | secagg.Aborted | None:
        """Go on with those that answered; the end of the round, or None when another stage follows.

        A stage that ended in ``Aborted`` is still open: replies that come after all may be given to it, and the stage
        closed again.
        """
        ...


OpenSum = Callable[[secagg.RoundSpec, secagg.IdentityKey, Entropy], SumRound]


class SecureSum:
    """``fedpeft.secagg``'s coordinator as one object."""

    def __init__(self, spec: secagg.RoundSpec, identity: secagg.IdentityKey, entropy: Entropy) -> None:
        self._state: secagg.Open = secagg.open_round(spec, identity=identity, entropy=entropy)

    @classmethod
    def resumed(cls, pending: Secret) -> Self:
        """The sum that ``pending`` kept, ready to ask for its opening again."""
        sum_ = cls.__new__(cls)
        sum_._state = secagg.load_pending(pending.value)
        return sum_

    @property
    def spec(self) -> secagg.RoundSpec:
        """The terms, as they were signed."""
        return self._state.terms.spec

    def signed_by(self, coordinator: bytes) -> bool:
        """Whether this key signed the terms."""
        offer = self._state.terms.offer
        return is_signed(coordinator, offer.signature, offer_context(offer))

    @property
    def stage(self) -> str:
        """See ``SumRound``."""
        return self._state.stage

    @property
    def requests(self) -> Mapping[ParticipantId, secagg.Request]:
        """See ``SumRound``."""
        waiting = self._state.waiting
        return Requests([one for one in self._state.requests if one in waiting], self._state.requests.__getitem__)

    @property
    def answered(self) -> int:
        """See ``SumRound``."""
        return len(self._state.answered)

    def pending(self) -> Secret:
        """See ``SumRound``."""
        return Secret(secagg.dump_pending(self._state))

    def receive(self, sender: ParticipantId, reply: secagg.Reply) -> None:
        """See ``SumRound``."""
        self._take(secagg.receive(self._state, sender, reply))

    def fail(self, sender: ParticipantId, detail: str) -> None:
        """See ``SumRound``."""
        self._take(secagg.reject(self._state, sender, secagg.Reason.DROPPED_OUT, detail))

    def close_stage(self) -> secagg.Summed | secagg.Aborted | None:
        """See ``SumRound``."""
        state = secagg.close_stage(self._state)
        if not isinstance(state, secagg.Open):
            return state
        self._state = state
        return None

    def _take(self, state: secagg.CoordinatorState) -> None:
        if isinstance(state, secagg.Open):
            self._state = state
