"""A second accountant: Opacus's, beside ours. The larger of the two epsilons is what is charged.

Ours is an upper bound by construction; a bug in it would be a promise that nobody keeps. So wherever an epsilon decides
(how much noise, whether a round is still within the budget) and wherever one is printed, Opacus's PRV accountant is
asked about the same steps, and counts with the upper end of its own error bound. Where PRV has no answer, ours counts
alone if it is at least half of Opacus's Renyi bound, as it is wherever both are right and epsilon is not tiny; else
the Renyi bound does. If Opacus does not answer at all, nothing is promised: epsilon is infinite.

Opacus sees Gaussians: steps of DP-SGD as they are, and noisy sums over clients as the Gaussian mechanisms of which
they are post-processing (``fedpeft.privacy.accountant``); what the grid differs from them is in our figure alone.
It answers in a process of its own (``fedpeft.privacy.opacus_process``).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from fedpeft.errors import RunFailed
from fedpeft.privacy.accountant import ACCOUNTANT, Release, epsilon
from fedpeft.privacy.composition import Accountant, Charge, Protected, total_epsilon
from fedpeft.privacy.opacus_accounting import Figures, Steps
from fedpeft.privacy.opacus_process import NoAnswer, OpacusProcess
from fedpeft.privacy.sampled_gaussian import SAMPLED_ACCOUNTANT, SampledRelease, sampled_epsilon

__all__ = ["Opinions", "calibrate_by_both", "exceeds", "opinions"]

MAX_KNOWN = 256

NOT_GAUSSIAN = "the grid is too coarse for a Gaussian mechanism behind it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinions:
    """What several accountants say about the same releases, at one delta.

    Args:
        ours: our own epsilon.
        prv: the upper end of Opacus's PRV accountant; None: it has none.
        rdp: of Opacus's Renyi accountant; None: it has none.
        failure: why there is no ``prv``.
        accountant: what ours is.
    """

    ours: float
    prv: float | None
    rdp: float | None
    failure: str = ""
    accountant: str = SAMPLED_ACCOUNTANT

    @property
    def charged(self) -> float:
        """The epsilon that counts: the larger."""
        if self.prv is not None:
            return max(self.ours, self.prv)
        if self.rdp is None:
            return self.ours if self.failure in ("", NOT_GAUSSIAN) else math.inf
        return self.ours if self.ours >= self.rdp / 2 else self.rdp

    def line(self) -> str:
        """All figures, for a statement."""
        renyi = "" if self.rdp is None else f"; {self.rdp:.4g} by its Renyi divergence (an upper bound)"
        if self.prv is not None:
            second = (
                f"{self.prv:.4g} by Opacus's PRV, the upper end of its error bound{renyi}; the larger of the first two"
            )
            return f"accountants: {self.ours:.4g} by ours ({self.accountant}); {second} is charged"
        if not self.failure:
            return f"accountants: {self.ours:.4g} by ours ({self.accountant}); there was nothing to ask Opacus"
        which = "ours"
        if self.charged != self.ours:
            which = "nothing, for want of a second accountant," if self.rdp is None else "the Renyi bound, twice ours,"
        return (
            f"accountants: {self.ours:.4g} by ours ({self.accountant}); none by Opacus's PRV ({self.failure}){renyi}; "
            f"{which} is charged"
        )


def opinions(charges: Iterable[Charge], delta: float, unit: Protected | None = None) -> Opinions:
    """What ours and Opacus's accountants say about all these releases together; as ``total_epsilon``."""
    charges = list(charges)
    ours = total_epsilon(charges, delta, unit)
    name = SAMPLED_ACCOUNTANT if any(isinstance(one, SampledRelease) for one in charges) else ACCOUNTANT
    if not charges or not math.isfinite(ours):
        return Opinions(ours=ours, prv=None, rdp=None, accountant=name)
    try:
        rdp = total_epsilon(charges, delta, unit, by=_RENYI)
    except _NoFigure as none:
        return Opinions(ours=ours, prv=None, rdp=None, failure=str(none), accountant=name)
    try:
        prv = total_epsilon(charges, delta, unit, by=_PRV)
    except _NoFigure as none:
        return Opinions(ours=ours, prv=None, rdp=rdp, failure=str(none), accountant=name)
    return Opinions(ours=ours, prv=prv, rdp=rdp, accountant=name)


def exceeds(charges: Iterable[Charge], limit: float, delta: float, unit: Protected | None = None) -> bool:
    """Whether what these releases are charged goes past ``limit``.

    Opacus is not asked where ours is past it already, nor about a part of what it has found to be within it.
    """
    if limit == math.inf:
        return False
    charges = list(charges)
    if total_epsilon(charges, delta, unit) > limit:
        return True
    history = _steps_of(charges, unit)
    if history is not None and any(value <= limit and _part(history, known) for known, value in _known(delta)):
        return False
    found = opinions(charges, delta, unit).charged
    if history is not None:
        _remember(history, delta, found)
    return found > limit


def calibrate_by_both(
    find: Callable[[float], float], charges: Callable[[float], Sequence[Charge]], limit: float, delta: float
) -> float:
    """The least noise multiplier with which what is charged stays within ``limit``, near enough.

    Args:
        find: the least noise multiplier for an epsilon, by ours.
        charges: what is released with a noise multiplier.
        limit: epsilon.
        delta: the budget's.

    Raises:
        ValueError: there is none, as ``find`` says it.
    """
    target = limit
    for _ in range(8):
        z = find(target)
        if not exceeds(charges(z), limit, delta):
            return z
        found = opinions(charges(z), delta)
        target = min(target, found.ours) * 0.9999 * limit / found.charged  # z is rounded, so ours may lie far below
    raise ValueError(
        f"Expected a noise multiplier with which both accountants find at most epsilon={limit:g}, found that they do "
        "not come closer to each other; allow a larger epsilon."
    )


class _NoFigure(RunFailed):
    """One of Opacus's accountants has no answer; the text is why."""


def _figure(which: Literal["prv", "rdp"], history: Sequence[Steps], delta: float, near: float) -> float:
    try:
        found = _asked(tuple(history), delta, float(f"{near:.2g}"))
    except NoAnswer as error:
        raise _NoFigure(str(error)) from error
    value = found.prv if which == "prv" else found.rdp
    if value is None:
        raise _NoFigure(found.failure or "no answer")
    return value


def _of_clients(which: Literal["prv", "rdp"], counted: Sequence[tuple[Release, int]], delta: float) -> float:
    history = _gaussians(counted)
    if history is None:
        raise _NoFigure(NOT_GAUSSIAN)
    return _figure(which, history, delta, epsilon(counted, delta))


def _of_steps(which: Literal["prv", "rdp"], counted: Sequence[tuple[SampledRelease, int]], delta: float) -> float:
    return _figure(which, _sampled(counted), delta, sampled_epsilon(counted, delta))


_PRV = Accountant(clients=partial(_of_clients, "prv"), sampled=partial(_of_steps, "prv"))
_RENYI = Accountant(clients=partial(_of_clients, "rdp"), sampled=partial(_of_steps, "rdp"))


def _gaussians(counted: Iterable[tuple[Release, int]]) -> tuple[Steps, ...] | None:
    """The Gaussian mechanisms behind noisy sums over clients; None: some has none."""
    found: Counter[float] = Counter()
    for release, times in counted:
        if not release.precision < math.inf:
            return None
        found[release.precision**-0.5] += times
    return _ordered({(z, 1.0): count for z, count in found.items()})


def _sampled(counted: Iterable[tuple[SampledRelease, int]]) -> tuple[Steps, ...]:
    found: Counter[tuple[float, float]] = Counter()
    for release, times in counted:
        found[(release.noise_multiplier, release.sampling_rate)] += release.steps * times
    return _ordered(found)


def _ordered(found: "Counter[tuple[float, float]] | dict[tuple[float, float], int]") -> tuple[Steps, ...]:
    return tuple(
        Steps(noise_multiplier=z, sampling_rate=rate, count=count)
        for (z, rate), count in sorted(found.items())
        if count > 0
    )


_opacus = OpacusProcess()


@lru_cache(maxsize=1024)
def _asked(history: tuple[Steps, ...], delta: float, near: float) -> Figures:
    if not history:
        return Figures(prv=0.0, rdp=0.0)
    return _opacus.ask(history, delta, near)  # a failure is not kept: it may be ours


_answers: dict[float, list[tuple[tuple[Steps, ...], float]]] = {}


def _steps_of(charges: Sequence[Charge], unit: Protected | None) -> tuple[Steps, ...] | None:
    """What Opacus would be asked about releases of one kind, and of the unit that they hide; None: something else."""
    kinds = {"client" if isinstance(one, Release) else one.unit for one in charges}
    if len(kinds) != 1 or (unit is not None and kinds != {unit}):
        return None
    clients = Counter(one for one in charges if isinstance(one, Release))
    return (
        _gaussians(clients.items())
        if clients
        else _sampled(Counter(one for one in charges if isinstance(one, SampledRelease)).items())
    )


def _known(delta: float) -> list[tuple[tuple[Steps, ...], float]]:
    return _answers.get(delta, [])


def _remember(history: tuple[Steps, ...], delta: float, found: float) -> None:
    of_delta = _answers.setdefault(delta, [])
    of_delta.append((history, found))
    del of_delta[:-MAX_KNOWN]


def _part(history: Sequence[Steps], whole: Sequence[Steps]) -> bool:
    """Whether doing ``whole`` includes doing ``history``: then it cannot cost less."""
    counts = {(one.noise_multiplier, one.sampling_rate): one.count for one in whole if one.sampling_rate < 1}
    sampled = [one for one in history if one.sampling_rate < 1]
    if any(one.count > counts.get((one.noise_multiplier, one.sampling_rate), 0) for one in sampled):
        return False
    # Gaussian mechanisms compose to one, whose precision is the sum of theirs.
    return _precision(history) <= _precision(whole)


def _precision(history: Sequence[Steps]) -> float:
    return sum(one.count / one.noise_multiplier**2 for one in history if one.sampling_rate == 1)
