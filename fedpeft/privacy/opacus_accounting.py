"""What Opacus's accountants say about steps of the Poisson-sampled Gaussian: a second opinion, by other code than ours.

A program: ``python -m fedpeft.privacy.opacus_accounting`` answers questions, a line each. A process of its own keeps
what asks free of torch, and PRV's memory and crashes out of it. The accountants need numpy and scipy alone, but
``import opacus`` loads torch, three seconds of it, for an optimizer class in a type annotation; so this program puts an
empty ``opacus.optimizers`` in its place. Nothing else of ``fedpeft.privacy`` may import Opacus.

PRV (Gopi, Lee and Wutschitz 2021) bounds epsilon from both sides; its upper end is taken. Its error is asked for in
proportion to epsilon, since Opacus's own default of 0.01 would be a tenth of an epsilon of 0.1. It is fragile at
extremes: whatever it raises, or answers that is no number, becomes a reason.
"""

import importlib.util
import json
import math
import select
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

__all__ = ["IDLE_S", "Figures", "Steps", "figures"]

IDLE_S = 120.0
"""The program ends when nobody has asked for so long."""

RELATIVE_ERROR = 2e-3
"""Of epsilon, which PRV's own bound is asked to be."""

LEAST_ERROR, LARGEST_ERROR = 1e-4, 0.05
"""Of PRV, absolute; with a larger one it has no opinion."""

MAX_CELLS = 1 << 22
"""Of PRV's grid: some 300 MB."""

ORDERS = (*(1 + x / 4 for x in range(1, 12)), *range(4, 33), 40, 48, 64, 96, 128, 192, 256, 512)
"""Of the Renyi divergence: larger ones than Opacus tries, for small epsilons, and fewer fractions, which are slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """So many steps of one kind.

    Args:
        noise_multiplier: > 0.
        sampling_rate: in (0, 1].
        count: >= 1.
    """

    noise_multiplier: float
    sampling_rate: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What Opacus says.

    Args:
        prv: upper end of PRV's epsilon; None: it gave none.
        rdp: the Renyi accountant's; None: it gave none.
        failure: why PRV gave none; empty when it did.
    """

    prv: float | None
    rdp: float | None
    failure: str = ""


def figures(steps: Sequence[Steps], delta: float, near: float) -> Figures:
    """Epsilon at ``delta`` of all these steps.

    Args:
        steps: what was done, in any order.
        delta: in (0, 1).
        near: about what epsilon is; decides how exact PRV has to be.
    """
    import numpy as np

    history = [(one.noise_multiplier, one.sampling_rate, one.count) for one in steps]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rdp, _ = _tried(lambda: _rdp(history, delta))
        prv, failure = _tried(lambda: _prv(history, delta, near))
    if prv is not None and rdp is not None and prv > 1.02 * rdp + 2 * LARGEST_ERROR:
        prv, failure = None, f"its {prv:.4g} lies above Opacus's own Renyi bound {rdp:.4g}"
    return Figures(prv=prv, rdp=rdp, failure=failure)


def _tried(ask: Callable[[], float]) -> tuple[float | None, str]:
    """A finite epsilon, or why there is none."""
    try:
        found = float(ask())
    except MemoryError:
        return None, "out of memory"
    except Exception as error:  # another library's numerics: whatever it raises, it has no opinion
        return None, f"{type(error).__name__}: {error}"[:200]
    if not math.isfinite(found) or found < 0:
        return None, f"it answered {found}"
    return found, ""


def _rdp(history: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = history
    return float(accountant.get_epsilon(delta, alphas=list(ORDERS)))


def _prv(history: list[tuple[float, float, int]], delta: float, near: float) -> float:
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV, compute_safe_domain_size

    delta_error = delta / 1000
    error = min(max(RELATIVE_ERROR * near, LEAST_ERROR), LARGEST_ERROR)
    counts = [count for _, _, count in history]
    reach = compute_safe_domain_size(
        prvs=[PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in history],
        max_self_compositions=counts,
        eps_error=error,
        delta_error=delta_error,
    )
    spread = math.sqrt(sum(counts) * math.log(12 / delta_error) / 2)  # the mesh is the error over it, as in Opacus
    error = max(error, 2 * reach * spread / MAX_CELLS)
    if not error <= LARGEST_ERROR:
        raise ValueError(f"its grid would have more than {MAX_CELLS} places")
    accountant = PRVAccountant()
    accountant.history = history
    # The reach takes most of the time; Opacus would compute it once more.
    accountant._get_domain = lambda **_: Domain.create_aligned(-reach, reach, error / spread)
    return float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta_error))


def _without_torch() -> None:
    """Let ``opacus.accountants`` be imported without the rest of Opacus. For a process that does nothing else."""
    found = importlib.util.find_spec("opacus")
    package, optimizers = types.ModuleType("opacus"), types.ModuleType("opacus.optimizers")
    package.__path__ = list(found.submodule_search_locations or ()) if found else []
    optimizers.DPOptimizer = object  # type: ignore[attr-defined]
    sys.modules |= {"opacus": package, "opacus.optimizers": optimizers}


def _main() -> None:
    _without_torch()
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        question = json.loads(line)
        steps = [Steps(**one) for one in question["steps"]]
        found = figures(steps, float(question["delta"]), float(question["near"]))
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
