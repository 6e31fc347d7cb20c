"""Who calls the gRPC service: which device a certificate speaks for, how often it may call, how many streams it has."""

from collections.abc import Callable

import grpc

from fedpeft.clock import Clock
from fedpeft.deployment.messages import Refused
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.registry import EnrolledDevice
from fedpeft_server.rate_limit import RateLimit
from fedpeft_server.service.grpc_calls import Call, abort, client_certificate, refuse

__all__ = ["Callers"]

_ENROL_PER_S, _ENROL_BURST = 10.0, 200
"""Of one token, and of one address without one: forty devices may join at once; the secret has 128 bits."""
_CALLS_PER_S, _CALLS_BURST = 20.0, 200
"""Of one enrolled device."""
_RENEWALS_PER_S, _RENEWALS_BURST = 1 / 900, 8
"""Of one enrolled device: each is a certificate and an audit record for ever; a device renews once in months."""
_STREAMS_A_DEVICE = 4


class Callers:
    """The limits of one service.

    Args:
        admission: knows the certificates.
        clock: of the limits.
        met: told whose a call is.

    Attributes:
        strangers, enrolling: the limits of whoever has no join token, by address, and of each token.
        renewing: of each device's new certificates.
    """

    def __init__(
        self, admission: Admission, clock: Clock, *, met: Callable[[Call, str], None] = lambda call, device: None
    ) -> None:
        self._admission, self._met = admission, met
        self.strangers = RateLimit(per_s=_ENROL_PER_S, burst=_ENROL_BURST, clock=clock)
        self.enrolling = RateLimit(per_s=_ENROL_PER_S, burst=_ENROL_BURST, clock=clock)
        self.renewing = RateLimit(per_s=_RENEWALS_PER_S, burst=_RENEWALS_BURST, clock=clock)
        self._calling = RateLimit(per_s=_CALLS_PER_S, burst=_CALLS_BURST, clock=clock)
        self._streams: dict[str, int] = {}

    async def device(self, call: Call, *, counted: bool = True) -> EnrolledDevice:
        """Whom this call speaks for; ends the call when it is nobody who may."""
        certificate = client_certificate(call)
        if certificate is None:
            await abort(call, grpc.StatusCode.UNAUTHENTICATED, "this needs the certificate of an enrolled device")
        answer = self._admission.admit(certificate)
        if isinstance(answer, Refused):
            await refuse(call, answer)
        self._met(call, answer.name)
        if counted:
            await self.limit(self._calling, answer.name, call)
        return answer

    async def limit(self, limit: RateLimit, caller: str, call: Call) -> None:
        """Ends the call when this caller calls too often."""
        if not limit.allows(caller):
            await abort(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests; wait a little")

    async def enter(self, device: str, call: Call) -> None:
        """Counts an open stream of a device; ends the call when it has too many."""
        if self._streams.get(device, 0) >= _STREAMS_A_DEVICE:
            await abort(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many open streams of this device")
        self._streams[device] = self._streams.get(device, 0) + 1

    def leave(self, device: str) -> None:
        """One stream of a device less."""
        left = self._streams[device] - 1
        if left:
            self._streams[device] = left
        else:
            del self._streams[device]
