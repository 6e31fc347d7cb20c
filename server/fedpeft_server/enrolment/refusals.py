"""Those who were refused before they had proven anything: numbers in memory, and one audit record a period.

A record is durable and chained, so each costs a sync of the disk and some hundred bytes for ever. A stranger may ask as
often as they like: what they cost must not grow with it.
"""

import threading
from collections import Counter

from fedpeft.clock import Clock
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog

__all__ = ["PERIOD_S", "RefusedStrangers"]

PERIOD_S = 300.0
"""Between two records: at most 288 a day, some 130 KB."""
_ADDRESSES = 1024


class RefusedStrangers:
    """Thread-safe.

    Args:
        audit: gets one record for each period in which somebody was refused.
        clock: monotonic.
        where: what they asked for, for the record.
    """

    def __init__(self, audit: AuditLog, clock: Clock, *, where: str = "enrolment") -> None:
        self._audit, self._clock, self._where = audit, clock, where
        self._lock = threading.Lock()
        self._by_address: Counter[str] = Counter()
        self._count, self._since_s = 0, clock.monotonic_s()

    def count(self, address: str) -> None:
        """One more; writes nothing."""
        with self._lock:
            self._count += 1
            if address in self._by_address or len(self._by_address) < _ADDRESSES:
                self._by_address[address] += 1

    def record(self, *, now: bool = False) -> bool:
        """Writes what has come together, if a period is over; whether it did.

        Args:
            now: whether to write before the period is over: the process ends.
        """
        with self._lock:
            at_s = self._clock.monotonic_s()
            if not self._count or (at_s - self._since_s < PERIOD_S and not now):
                return False
            count, addresses, seconds = self._count, self._by_address, at_s - self._since_s
            self._by_address, self._count, self._since_s = Counter(), 0, at_s
        most, by_most = addresses.most_common(1)[0]
        detail: dict[str, str | int | float] = {
            "count": count,
            "addresses": len(addresses),
            "most_from": most[:64],
            "most": by_most,
            "seconds": round(seconds),
        }
        self._audit.append(AuditEvent.STRANGERS_REFUSED, actor="coordinator", subject=self._where, detail=detail)
        return True
