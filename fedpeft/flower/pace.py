"""A simulated clock: when each virtual device would be ready if its class took ``[[device]] fit_seconds`` for a round.

Devices are computed as fast as this machine can, and heard in the order of simulated time; a round that is closed
without a device leaves it at work until its time is over, and what it is sent meanwhile reaches it then. So the same
configuration gives the same rounds on every machine, and the seconds in metrics.jsonl are simulated ones. Exchanges
other than FIT take no time.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime

from fedpeft.adapter import AdapterState
from fedpeft.clock import SystemClock
from fedpeft.ids import NodeId
from fedpeft.round.local import Effort, ForwardingTrainer, LocalResult
from fedpeft.round.plan import LearningPlan
from fedpeft.round.transport import Reply, Stage, Transport
from fedpeft.round.work import Work

__all__ = ["NotedTrainer", "PacedTransport", "SimulatedClock"]


@dataclass(slots=True)
class SimulatedClock:
    """``Clock`` that goes on when somebody moves it."""

    now_s: float = 0.0

    def monotonic_s(self) -> float:
        """See ``Clock``."""
        return self.now_s

    def utc(self) -> datetime:
        """See ``Clock``: records are of real time."""
        return SystemClock().utc()


class PacedTransport:
    """``Transport`` on a simulated clock.

    Args:
        inner: the way to the virtual devices.
        clock: moved to each reply's time.
        fit_s: how long a device takes for a round that it computes.
        computed: the devices that have computed since they were asked for last.
    """

    def __init__(
        self,
        inner: Transport,
        clock: SimulatedClock,
        *,
        fit_s: Callable[[NodeId], float],
        computed: Callable[[], Set[NodeId]],
    ) -> None:
        self._inner, self._clock, self._fit_s, self._computed = inner, clock, fit_s, computed
        self._busy_until: dict[NodeId, float] = {}
        self._exchanges = 0

    def nodes(self) -> Sequence[NodeId]:
        """See ``Transport``."""
        return self._inner.nodes()

    def elsewhere(self) -> int:
        """See ``Transport``."""
        return self._inner.elsewhere()

    def exchange(self, stage: Stage, requests: Mapping[NodeId, bytes], *, deadline_s: float) -> Iterator[Reply]:
        """See ``Transport``."""
        if stage is not Stage.FIT:
            yield from self._inner.exchange(stage, requests, deadline_s=deadline_s)
            return
        begun_s = self._clock.now_s
        self._exchanges += 1  # of those that are ready at one time another is first in each round
        turn = {node: hashlib.sha256(f"{self._exchanges} {node}".encode()).digest() for node in requests}
        waiting = {node: self._busy_until.get(node, 0.0) for node in requests}
        ready: dict[NodeId, tuple[float, Reply]] = {}
        while waiting or ready:
            first_s = min((at_s for at_s, _ in ready.values()), default=float("inf"))
            free = [node for node, free_s in waiting.items() if max(free_s, begun_s) <= first_s]
            if free:  # whoever is free by then begins before the next reply is there
                soonest_s = min(max(waiting[node], begun_s) for node in free)
                now = [node for node in free if max(waiting[node], begun_s) == soonest_s]
                ready |= self._computed_by(now, requests, soonest_s, deadline_s)
                for node in now:
                    del waiting[node]
                continue
            node = min(ready, key=lambda one: (ready[one][0], turn[one]))
            at_s, reply = ready.pop(node)
            if at_s - begun_s > deadline_s:
                self._clock.now_s = begun_s + deadline_s
                return
            self._clock.now_s = max(self._clock.now_s, at_s)
            yield replace(reply, seconds=at_s - begun_s)

    def _computed_by(
        self, nodes: Sequence[NodeId], requests: Mapping[NodeId, bytes], begin_s: float, deadline_s: float
    ) -> dict[NodeId, tuple[float, Reply]]:
        """Replies of devices that begin at this time, with the time at which each is there."""
        asked = {node: requests[node] for node in nodes}
        replies = list(self._inner.exchange(Stage.FIT, asked, deadline_s=deadline_s))
        computed = self._computed()
        found = {}
        for reply in replies:
            at_s = begin_s + (self._fit_s(reply.node) if reply.node in computed else 0.0)
            self._busy_until[reply.node] = at_s
            found[reply.node] = (at_s, reply)
        return found


@dataclass(frozen=True, slots=True)
class NotedTrainer(ForwardingTrainer):
    """``Trainer`` that says when it computes.

    Args:
        inner: what it does.
        note: called at each ``fit``.
    """

    note: Callable[[], None]

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``."""
        self.note()
        return self.inner.fit(plan, state, work, effort)
