"""What Opacus is asked and how its answers are read: in this process, by Opacus's accountants without the rest of it.

Elsewhere the program runs as a process of its own, which is what tests/privacy/test_second_opinion.py uses.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedpeft.privacy import opacus_accounting
from fedpeft.privacy.opacus_accounting import Steps, _tried, _without_torch, figures
from fedpeft.privacy.opacus_process import NoAnswer, OpacusProcess


@pytest.fixture(scope="module")
def opacus() -> Iterator[ModuleType]:
    """``opacus.accountants``, loaded as the program loads it; whoever needs the whole of Opacus loads it anew."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "opacus"}
    _without_torch()
    import opacus.accountants

    yield opacus.accountants
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        del sys.modules[name]
    sys.modules |= before


def steps(z: float, q: float, count: int) -> Steps:
    return Steps(noise_multiplier=z, sampling_rate=q, count=count)


Grids = list[tuple[Any, float, float]]


@pytest.fixture
def grids(opacus: Any, monkeypatch: pytest.MonkeyPatch) -> Grids:
    """Fills up with the grids and the errors of epsilon and delta that PRV is to work with, in place of its work."""
    seen: Grids = []

    def get_epsilon(self: Any, delta: float, *, eps_error: float, delta_error: float) -> float:
        seen.append((self._get_domain(), eps_error, delta_error))
        return 0.25

    monkeypatch.setattr(opacus.PRVAccountant, "get_epsilon", get_epsilon)
    return seen


@pytest.mark.parametrize(
    ("asked", "delta", "near", "error"),
    [
        ([steps(4.0, 0.1, 30)], 1e-5, 4.0, 8e-3),  # two thousandths of about what epsilon is
        ([steps(4.0, 0.2, 5), steps(6.0, 1.0, 1)], 1e-4, 1e-3, 1e-4),  # but no less than this
        ([steps(4.0, 0.3, 12)], 1e-6, 400.0, 0.05),  # and no more than this
    ],
)
def test_opacus_is_asked_for_an_error_in_proportion_and_on_its_own_grid(
    opacus: Any, grids: Grids, asked: list[Steps], delta: float, near: float, error: float
) -> None:
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    assert figures(asked, delta, near).prv == 0.25
    ((grid, epsilon_error, delta_error),) = grids
    assert epsilon_error == pytest.approx(error)
    assert delta_error == pytest.approx(delta / 1000)
    own = opacus.PRVAccountant()._get_domain(
        prvs=[PoissonSubsampledGaussianPRV(one.sampling_rate, one.noise_multiplier) for one in asked],
        num_self_compositions=[one.count for one in asked],
        eps_error=error,
        delta_error=delta / 1000,
    )
    assert (grid.size, grid.t_min, grid.t_max) == (own.size, pytest.approx(own.t_min), pytest.approx(own.t_max))


def test_a_grid_that_would_be_too_large_is_made_coarser_until_the_error_would_be(grids: Grids) -> None:
    assert figures([steps(4.0, 0.1, 3000)], 1e-5, 0.1).prv == 0.25
    ((grid, error, _),) = grids
    assert grid.size == pytest.approx(1 << 22, abs=4)
    assert 2e-4 < error < 0.05, "larger than was asked for, and still one that may be used"
    beyond = figures([steps(0.5, 1.0, 20_000)], 1e-5, 0.1)
    assert beyond.prv is None
    assert "more than 4194304 places" in beyond.failure
    assert len(grids) == 1


def test_no_order_up_to_thirty_two_would_give_a_smaller_renyi_bound(opacus: Any) -> None:
    """Without sampling the divergence is order / (2 z^2) a step: the conversion is Opacus's, the orders are ours."""
    delta = 1e-5
    for rate in np.geomspace(1e-4, 8.0, 40):
        z = math.sqrt(1 / (2 * rate))
        found = opacus_accounting._rdp([(z, 1.0, 1)], delta)

        def bound(order: float, rate: float = rate) -> float:
            return order * rate - (math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order)

        assert found <= min(bound(order) for order in range(2, 33)) * (1 + 1e-12)
        dense = min(bound(order) for order in np.geomspace(1.05, 600, 4000))
        assert dense * (1 - 1e-12) <= found <= 1.02 * dense or rate > 4, rate


@pytest.mark.parametrize("above", [-1e-6, 1e-6])
def test_a_figure_above_opacus_own_renyi_bound_and_both_errors_is_none(
    opacus: Any, above: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded fault of PRV; between the two bounds there is room for a fiftieth and the error on either side."""
    asked = [steps(1.0, 1.0, 1)]
    renyi = opacus_accounting._rdp([(1.0, 1.0, 1)], 1e-5)
    monkeypatch.setattr(opacus_accounting, "_prv", lambda *_: 1.02 * renyi + 0.1 + above)
    found = figures(asked, 1e-5, 4.0)
    assert (found.prv is None) == (above > 0)
    assert ("Renyi" in found.failure) == (above > 0)


@pytest.mark.parametrize("answer", [0.0, 1e-9, 0.5, 300.0])
def test_any_finite_epsilon_is_an_answer(answer: float) -> None:
    assert _tried(lambda: answer) == (answer, "")


@pytest.mark.parametrize("answer", [-1e-9, -1.0, math.inf, -math.inf, math.nan])
def test_what_is_no_epsilon_is_none_and_said(answer: float) -> None:
    found, why = _tried(lambda: answer)
    assert found is None
    assert str(answer) in why


def test_whatever_opacus_raises_is_a_reason_and_not_a_failure() -> None:
    def raising(error: Exception) -> float:
        raise error

    assert _tried(lambda: raising(MemoryError())) == (None, "out of memory")
    found, why = _tried(lambda: raising(OverflowError("x" * 999)))
    assert found is None
    assert why.startswith("OverflowError: xxx")
    assert len(why) == 200


def test_a_process_that_is_stopped_leaves_no_open_pipe() -> None:
    """Of thousands of questions each failure would leave two."""
    process = OpacusProcess()
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process._process = child
    process.close()
    assert child.returncode is not None
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdin.closed
    assert child.stdout.closed


def test_a_process_whose_answer_is_none_is_ended_and_the_next_question_starts_another() -> None:
    process = OpacusProcess()
    answering = "import sys; print('no answer', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", answering], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process._process, process._owner = child, os.getpid()
    with pytest.raises(NoAnswer, match="JSONDecodeError"):
        process.ask([Steps(noise_multiplier=1.0, sampling_rate=0.1, count=1)], 1e-5, 1.0)
    assert child.poll() is not None
    assert process._process is None
