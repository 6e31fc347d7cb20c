"""What a run spent of its privacy, by round: for the tile and the curve of the report."""

from dataclasses import dataclass

from fedpeft.privacy import read_ledger
from fedpeft.privacy.composition import total_epsilon
from fedpeft_server.privacy.client_level import LEDGER
from fedpeft_server.run.privacy_statements import STATED, client_statement, stated, unstated
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
        curve: (number, epsilon) as it grew: of releases by fedpeft's accountant, or of rounds as devices state it.
        counted: what the curve's numbers count: ``release`` or ``round``.
        uncovered: how many devices were summed and stated nothing: the epsilon holds for none of them.
    """

    epsilon: float
    delta: float
    unit: str
    curve: tuple[tuple[int, float], ...]
    counted: str
    uncovered: int = 0


def spent_of(view: RunView) -> Spent | None:
    """None without privacy, and where nothing was released yet."""
    unit = view.config().privacy.unit
    if unit == "none":
        return None
    return _of_clients(view) if unit == "client" else _of_examples(view, unit)


def _of_clients(view: RunView) -> Spent | None:
    said = client_statement(view)
    if said is None:
        return None
    releases = [entry.release for entry in read_ledger(view.path / LEDGER)]
    delta, count = said.delta, len(releases)
    counts = sorted({max(1, round(count * i / POINTS)) for i in range(1, POINTS + 1)})
    curve = tuple((made, total_epsilon(releases[:made], delta)) for made in counts)
    return Spent(epsilon=said.epsilon, delta=said.delta, unit="client", curve=curve, counted="release")


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
        curve=tuple(sorted(by_round.items())),
        counted="round",
        uncovered=len(unstated(view)),
    )
