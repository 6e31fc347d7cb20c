"""The coordinator's half of one secure sum as the round drives it: one object with stages."""

from collections.abc import Callable, Mapping
from typing import Protocol

from fedpeft import secagg
from fedpeft.entropy import Entropy
from fedpeft.ids import ParticipantId

__all__ = ["OpenSum", "SecureSum", "SumRound"]


class SumRound(Protocol):
    """The coordinator's half of one secure sum: ``SecureSum``; another one only to measure what it costs."""

    @property
    def stage(self) -> str:
        """What is asked now: ``fit``, ``share``, ``mask``, ``consist`` or ``reveal``."""
        ...

    @property
    def requests(self) -> Mapping[ParticipantId, secagg.Request]:
        """What to send to whom in this stage."""
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
        """Go on with those that answered; the end of the round, or None when another stage follows."""
        ...


OpenSum = Callable[[secagg.RoundSpec, secagg.IdentityKey, Entropy], SumRound]


class SecureSum:
    """``fedpeft.secagg``'s coordinator as one object."""

    def __init__(self, spec: secagg.RoundSpec, identity: secagg.IdentityKey, entropy: Entropy) -> None:
        self._state: secagg.Open = secagg.open_round(spec, identity=identity, entropy=entropy)
        self._end: secagg.Summed | secagg.Aborted | None = None

    @property
    def stage(self) -> str:
        """See ``SumRound``."""
        return self._state.stage

    @property
    def requests(self) -> Mapping[ParticipantId, secagg.Request]:
        """See ``SumRound``."""
        return self._state.requests

    @property
    def answered(self) -> int:
        """See ``SumRound``."""
        return len(self._state.answered)

    def receive(self, sender: ParticipantId, reply: secagg.Reply) -> None:
        """See ``SumRound``."""
        self._take(secagg.receive(self._state, sender, reply))

    def fail(self, sender: ParticipantId, detail: str) -> None:
        """See ``SumRound``."""
        self._take(secagg.reject(self._state, sender, secagg.Reason.DROPPED_OUT, detail))

    def close_stage(self) -> secagg.Summed | secagg.Aborted | None:
        """See ``SumRound``."""
        self._take(secagg.close_stage(self._state))
        return self._end

    def _take(self, state: secagg.CoordinatorState) -> None:
        if isinstance(state, secagg.Open):
            self._state = state
        else:
            self._end = state
