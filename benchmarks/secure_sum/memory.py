"""What a coordinator holds at its highest in a round."""

import tracemalloc
from collections.abc import Callable

import numpy as np
from secure_sum.rounds import make_round, sessions_of

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId
from fedpeft.secagg import (
    REPLIES,
    DevicePolicy,
    Mode,
    Open,
    RoundOffer,
    Summed,
    close_stage,
    open_round,
    receive,
)
from fedpeft.wire import decode, encode

__all__ = ["coordinator_peak_mb"]


class Meter:
    """Memory that the calls made through it allocate and keep, whatever happens in between."""

    def __init__(self) -> None:
        self.kept = self.peak = 0

    def call(self, function: Callable[[], Open | Summed]) -> Open | Summed:
        """Calls it and counts what it allocates at its highest, and keeps."""
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = function()
        after, highest = tracemalloc.get_traced_memory()
        self.peak = max(self.peak, self.kept + highest - before)
        self.kept += after - before
        return result


def coordinator_peak_mb(devices: int, parameters: int) -> float:
    """MiB the coordinator holds at its highest: decoding and adding every upload, unmasking, decoding the sum."""
    spec, coordinator, keys = make_round(devices, parameters, 32, Mode.FULL)
    policy = DevicePolicy(coordinator_key=coordinator.public)
    sessions = sessions_of(keys, policy)
    values = {BlockId("adapter"): np.zeros(parameters, np.float32), BlockId("metrics"): np.zeros(4, np.float32)}
    owns, meter = frozenset(values), Meter()
    tracemalloc.start()
    state = meter.call(lambda: open_round(spec, identity=coordinator, entropy=os_entropy))
    while isinstance(state, Open):
        for member, request in state.requests.items():
            if isinstance(request, RoundOffer):
                upload = encode(sessions[member].begin(request, owns=owns, entropy=os_entropy))
            else:
                reply = sessions[member].answer("benchmark", request, inputs=lambda: values, rounding=os_entropy)
                upload = encode(reply)
            now = state
            state = meter.call(lambda now=now, m=member, u=upload: receive(now, m, decode(u, REPLIES)))
        now = state
        state = meter.call(lambda now=now: close_stage(now))
    tracemalloc.stop()
    return meter.peak / 2**20
