"""How long the rest of a run takes, by the rounds that are done. Apart from what is foretold: it loads no torch."""

__all__ = ["Remaining"]


class Remaining:
    """How long the rounds that are left will take, by those that are done.

    Args:
        rounds: how many there are.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds, self._ends = rounds, list[float]()

    def ended(self, round_id: int, now_s: float) -> float | None:
        """A round ended; returns the seconds that the others will take, None before there is a whole round to go by.

        The first round that is seen also fills caches, and a resumed run begins within: it only starts the clock.
        """
        self._ends.append(now_s)
        if len(self._ends) < 2 or round_id >= self._rounds:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * (self._rounds - round_id)
