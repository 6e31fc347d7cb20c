"""Which run may use which devices now: several runs share a fleet, and a device works for one at a time.

A run takes the devices of a round, and gives them back when that has ended; between two attempts at it the run keeps
them, since a device that worked for another run meanwhile trains anew, and spends anew what privacy it has. It waits
until as many of those that it may ask are free as its round asks; a run that asks all of its devices waits for all of
them, so that sharing never makes a round smaller. Runs that use other devices (groups, samples of a large fleet) work
at the same time, and runs that use the same ones take turns.

Whoever waits is served by priority, then by how long it has had devices, in steps of ``TURN_S``: for about that long a
run keeps its place round after round, because a device that goes from one run to another loads another model. What a
run that waits and is ahead wants is not given to one behind it, so nobody waits for ever on the same priority. A run
that has a round to finish, whose members are fixed (``expect``), goes before all others: a device keeps one open round.
"""

import math
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from fedpeft.clock import Clock
from fedpeft.ids import NodeId

__all__ = ["COMES_BACK_S", "TURN_S", "DeviceTurns"]

TURN_S = 30.0
"""How long a run has devices while another run of its priority waits for them."""
COMES_BACK_S = 1.0
"""A run that has just given its devices back still counts as waiting: between two rounds it commits."""
LOOK_S = 0.2
"""Between two looks at who is reachable; a release is heard of at once."""


@dataclass(slots=True)
class _Run:
    """One run.

    Args:
        number: which.
        priority: higher ones are served first.
        used_s: for how long it has had devices.
        wants: what it waits for.
        until_s: until when it is counted as waiting for that.
        held: what it has; None: nothing.
        since_s: when it took that.
    """

    number: int
    priority: int
    used_s: float
    wants: Set[NodeId] = frozenset()
    until_s: float = -math.inf
    held: Set[NodeId] | None = None
    since_s: float = 0.0

    @property
    def order(self) -> tuple[int, int, int]:
        """Ascending: the first is served first."""
        return -self.priority, int(self.used_s / TURN_S), self.number


class DeviceTurns:
    """Thread-safe; a run is known by its number, between ``enter`` and ``leave``.

    Args:
        clock: of turns.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._runs: dict[int, _Run] = {}
        self._expected = set[int]()

    def expect(self, number: int) -> None:
        """Nobody else takes devices until this run has taken them, or is not expected any more."""
        with self._changed:
            self._expected.add(number)

    def expect_no_more(self, number: int) -> None:
        """The run has taken its devices, or does not come."""
        with self._changed:
            self._expected.discard(number)
            self._changed.notify_all()

    def enter(self, number: int, priority: int) -> None:
        """A run begins, or goes on. It has used as much as the one of its priority that used least."""
        with self._changed:
            used = [run.used_s for run in self._runs.values() if run.priority == priority]
            self._runs[number] = _Run(number, priority, min(used, default=0.0))

    def leave(self, number: int) -> None:
        """It has ended; what it held is free."""
        with self._changed:
            self._runs.pop(number, None)
            self._changed.notify_all()

    def take(
        self,
        number: int,
        wanted: Callable[[], Set[NodeId]],
        needed: Callable[[int], int],
        *,
        priority: Callable[[], int],
        interrupted: Callable[[], None],
        waits: Callable[[Sequence[int]], None],
    ) -> None:
        """Returns once the run holds what is free of the devices that it may ask.

        Args:
            number: which run. One that holds devices is at another attempt at its round: it never waits, and holds then
                whatever no other run holds.
            wanted: the devices that it may ask and that are reachable now; asked again at each look.
            needed: how many of so many it asks; no turn with fewer.
            priority: of the run now; asked again at each look.
            interrupted: raises to end the wait.
            waits: told once which runs have devices, if it has to wait.
        """
        run, told = self._runs[number], False
        try:
            while True:
                interrupted()
                found, preferred = wanted(), priority()  # not under the lock: they ask the registry and the queue
                with self._changed:
                    run.priority = preferred
                    if self._has_turn(run, found, needed(len(found))):
                        return
                    holders = sorted(other.number for other in self._runs.values() if other.held)
                    if told:
                        self._changed.wait(LOOK_S)
                if not told:
                    told = True
                    waits(holders)
        finally:
            run.until_s = -math.inf

    def keep(self, number: int, nodes: Set[NodeId]) -> None:
        """Gives back all that the run holds but these."""
        with self._changed:
            run = self._runs[number]
            if run.held is not None:
                run.held = run.held & nodes
                self._changed.notify_all()

    def give_back(self, number: int) -> None:
        """Gives back all that the run holds."""
        with self._changed:
            run = self._runs[number]
            if run.held is not None:
                now_s = self._clock.monotonic_s()
                run.used_s += now_s - run.since_s
                run.held, run.until_s = None, now_s + COMES_BACK_S
                self._changed.notify_all()

    def held(self, number: int) -> Set[NodeId]:
        """What the run holds."""
        with self._changed:
            return self._runs[number].held or frozenset()

    def _has_turn(self, run: _Run, found: Set[NodeId], needed: int) -> bool:
        """Whether the run has devices now; what it waits for is noted."""
        others = [other for other in self._runs.values() if other is not run]
        free = set(found).difference(*(other.held for other in others if other.held is not None))
        if run.held is not None:
            run.held = free
            return True
        run.wants, run.until_s = found, math.inf
        now_s = self._clock.monotonic_s()
        if self._expected and run.number not in self._expected:
            return False
        if run.number not in self._expected:
            ahead = (other for other in others if other.until_s >= now_s and other.order < run.order)
            free = free.difference(*(other.wants for other in ahead))
        if len(free) < needed:
            return False
        run.held, run.since_s = free, now_s
        self._expected.discard(run.number)
        return True
