"""What a run spent of its privacy, by round: for the tile and the curve of the report."""

from dataclasses import dataclass

from fedpeft.privacy import Release, epsilon, read_ledger
from fedpeft_server.privacy.client_level import LEDGER
from fedpeft_server.privacy.noise_plan import read_budget
from fedpeft_server.run.privacy_statements import STATED, stated
from fedpeft_server.run.run_view import RunView

__all__ = ["Spent", "spent_of"]

POINTS = 24
"""Of a curve by the ledger: an accountant answers for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent, and of whom.

    Args:
        epsilon: charged in the whole run; under privacy by examples or people that of the device with the largest.
        delta: at which.
        unit: ``client``, ``example`` or ``person``.
        by_round: (round, epsilon) as it grew; as devices state it where it is theirs.
    """

    epsilon: float
    delta: float
    unit: str
    by_round: tuple[tuple[int, float], ...]


def spent_of(view: RunView) -> Spent | None:
    """None without privacy, and where nothing was released yet."""
    unit = view.config().privacy.unit
    if unit == "none":
        return None
    return _of_clients(view) if unit == "client" else _of_examples(view, unit)


def _of_clients(view: RunView) -> Spent | None:
    charged = [entry.release for entry in read_ledger(view.path / LEDGER)]
    releases = [release for release in charged if isinstance(release, Release)]
    if not releases:
        return None
    delta, count = read_budget(view.config().privacy).delta, len(releases)
    counts = sorted({max(1, round(count * i / POINTS)) for i in range(1, POINTS + 1)})
    curve = tuple((made, epsilon([(releases[0], made)], delta)) for made in counts)
    return Spent(epsilon=curve[-1][1], delta=delta, unit="client", by_round=curve)


def _of_examples(view: RunView, unit: str) -> Spent | None:
    last = stated(view)
    if not last:
        return None
    by_round, most = dict[int, float](), 0.0
    for event in view.events:
        said = event.detail.get("epsilon")
        if event.kind == STATED and event.client in last and event.round is not None and isinstance(said, int | float):
            most = max(most, float(said))
            by_round[event.round] = most
    return Spent(
        epsilon=max(one.opinions().charged for one in set(last.values())),
        delta=next(iter(last.values())).delta,
        unit=unit,
        by_round=tuple(sorted(by_round.items())),
    )
