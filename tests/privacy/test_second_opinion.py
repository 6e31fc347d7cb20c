"""Two accountants that must both agree to a promise: ours and Opacus's. The larger epsilon counts, whoever is wrong."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.errors import BudgetExhausted
from fedpeft.privacy import (
    Budget,
    Charge,
    ExampleStatement,
    Opinions,
    PrivacyLedger,
    Release,
    SampledRelease,
    Statement,
    calibrate_by_both,
    calibrate_sampled,
    exceeds,
    opinions,
    second_opinion,
    total_epsilon,
)
from fedpeft.privacy.composition import OURS, Protected
from fedpeft.privacy.opacus_accounting import Steps, figures
from fedpeft.privacy.opacus_process import NoAnswer, OpacusProcess


def steps(z: float, q: float, count: int, unit: str = "example") -> SampledRelease:
    return SampledRelease(noise_multiplier=z, sampling_rate=q, steps=count, parameters=1000, unit=unit)  # type: ignore[arg-type]


def sums(z: float) -> Release:
    return Release(noise_multiplier=z, shares=8, share_sigma=1e5, parameters=1000, devices=10)


TABLE = [
    (steps(1.0, 0.1, 100), 1e-5),
    (steps(0.6, 0.05, 200), 1e-4),
    (steps(5.0, 0.02, 3000), 1e-5),
    (steps(0.8, 0.08, 120), 1e-4),
    (steps(2.0, 1.0, 1), 1e-5),
    (steps(20.0, 0.7, 120), 1e-4),
    (steps(0.5, 0.01, 400), 1e-6),
    (steps(1.2, 0.005, 10_000), 1e-6),
    (steps(1.1, 0.09, 60, "person"), 1e-3),
    (sums(1.0), 1e-5),
    (sums(4.4), 1e-2),
    (sums(40.0), 1e-5),
]


@pytest.mark.parametrize(("release", "delta"), TABLE)
def test_both_accountants_agree_and_neither_figure_is_undercut(release: Charge, delta: float) -> None:
    found = opinions([release], delta)
    assert found.failure == ""
    assert found.prv is not None
    assert found.rdp is not None
    assert found.ours == total_epsilon([release], delta)
    assert found.prv == pytest.approx(found.ours, rel=0.01, abs=2e-3)
    assert found.charged >= max(found.ours, found.prv)
    assert found.rdp >= 0.998 * found.ours  # a looser bound on the same thing


@pytest.mark.parametrize(
    ("releases", "delta"), [([steps(1.0, 0.1, 50), steps(2.0, 0.3, 10)], 1e-5), ([sums(3.0)] * 9, 1e-4)]
)
def test_both_accountants_agree_over_several_releases(releases: Sequence[Charge], delta: float) -> None:
    found = opinions(releases, delta)
    assert found.prv == pytest.approx(total_epsilon(releases, delta), rel=0.01)


def test_an_accountant_of_ours_that_is_told_half_the_rate_is_overruled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wrong q, or any bug that promises too much: noise, statements and budgets follow the other one."""
    honest = OURS.sampled

    def halved(counted: Sequence[tuple[SampledRelease, int]], delta: float) -> float:
        return honest([(steps(one.noise_multiplier, one.sampling_rate / 2, one.steps), n) for one, n in counted], delta)

    true = honest([(steps(1.0, 0.2, 100), 1)], 1e-5)
    monkeypatch.setattr(second_opinion, "total_epsilon", _with_ours(halved))
    found = opinions([steps(1.0, 0.2, 100)], 1e-5)
    assert found.ours < 0.7 * true <= 0.7 * found.charged * 1.001
    assert exceeds([steps(1.0, 0.2, 100)], 0.9 * true, 1e-5)
    budget = Budget(epsilon=0.9 * true, delta=1e-5)
    with (
        PrivacyLedger(tmp_path / "l", witness=tmp_path / "w", budget=budget) as ledger,
        pytest.raises(BudgetExhausted, match=f"{found.charged:.4g} after"),
    ):
        ledger.charge("all", steps(1.0, 0.2, 100))
    z = calibrate_by_both(
        lambda target: calibrate_sampled(target, 1e-5, lambda z: steps(z, 0.1, 100)),
        lambda z: (steps(z, 0.2, 100),),
        3.0,
        1e-5,
    )
    assert honest([(steps(z, 0.2, 100), 1)], 1e-5) <= 3.0


Sampled = Callable[[Sequence[tuple[SampledRelease, int]], float], float]


def _with_ours(sampled: Sampled) -> Callable[..., float]:
    wrong = replace(OURS, sampled=sampled)
    return lambda charges, delta, unit=None, by=wrong: total_epsilon(charges, delta, unit, by=by)


@pytest.mark.parametrize(
    ("ours", "prv", "rdp", "failure", "charged", "said"),
    [
        (2.0, 2.1, 2.5, "", 2.1, "the larger of the first two is charged"),
        (2.0, 1.0, 2.5, "", 2.0, "the larger of the first two is charged"),  # a second opinion is never a discount
        (2.0, None, 2.5, "overflow", 2.0, "; ours is charged"),
        (2.0, None, 1.9, "overflow", 2.0, "; ours is charged"),
        # Ours is not what the Renyi bound makes plausible.
        (0.2, None, 2.5, "overflow", 2.5, "; the Renyi bound, twice ours, is charged"),
        (
            2.0,
            None,
            None,
            "Opacus's process failed",
            math.inf,
            "; nothing, for want of a second accountant, is charged",
        ),
        (2.0, None, None, second_opinion.NOT_GAUSSIAN, 2.0, "; ours is charged"),
        (0.0, None, None, "", 0.0, "there was nothing to ask Opacus"),
    ],
)
def test_what_is_charged(
    ours: float, prv: float | None, rdp: float | None, failure: str, charged: float, said: str
) -> None:
    found = Opinions(ours=ours, prv=prv, rdp=rdp, failure=failure)
    assert found.charged == charged
    assert failure in found.line()
    assert found.line().endswith(said)


@pytest.mark.parametrize(
    ("release", "delta"),
    [(steps(300.0, 0.9, 20_000), 1e-12), (steps(0.15, 0.5, 5000), 1e-5)],
)
def test_where_prv_gives_up_it_is_named_and_the_renyi_bound_decides(release: SampledRelease, delta: float) -> None:
    found = opinions([release], delta)
    if math.isinf(found.ours):
        assert found.charged == math.inf
        return
    assert found.prv is None
    assert found.failure
    assert found.rdp is not None
    assert found.charged == (found.ours if found.ours >= found.rdp / 2 else found.rdp)
    assert "none by Opacus's PRV" in found.line()


@pytest.mark.torch
def test_an_answer_above_opacus_own_renyi_bound_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.accountants import PRVAccountant

    monkeypatch.setattr(PRVAccountant, "get_epsilon", lambda *_, **__: 40.0)
    found = figures([Steps(noise_multiplier=1.0, sampling_rate=0.1, count=10)], 1e-5, 1.0)
    assert found.prv is None
    assert "above Opacus's own Renyi bound" in found.failure


@pytest.mark.torch
@pytest.mark.parametrize("answer", [math.nan, -1.0, math.inf])
def test_an_answer_that_is_no_epsilon_is_no_answer(answer: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.accountants import PRVAccountant

    monkeypatch.setattr(PRVAccountant, "get_epsilon", lambda *_, **__: answer)
    assert figures([Steps(noise_multiplier=1.0, sampling_rate=0.1, count=10)], 1e-5, 1.0).prv is None


@pytest.mark.torch
def test_the_process_without_torch_gives_the_figures_of_the_whole_library() -> None:
    asked = [Steps(noise_multiplier=1.3, sampling_rate=0.07, count=40)]
    process = OpacusProcess()
    assert process.ask(asked, 1e-5, 1.0) == figures(asked, 1e-5, 1.0)
    process.close()
    process.close()


def test_without_any_answer_nothing_is_promised_and_the_next_question_is_asked_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = [steps(1.7, 0.05, 33)]
    with monkeypatch.context() as context:
        context.setattr(second_opinion, "_opacus", OpacusProcess())
        context.setattr(sys, "executable", "/bin/false")
        assert opinions(release, 1e-5).charged == math.inf
        assert exceeds(release, 1e6, 1e-5)
    assert opinions(release, 1e-5).charged < 1.0


def test_a_process_that_ends_before_it_reads_the_question_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    process = OpacusProcess()
    start = process._start

    def start_and_wait() -> None:
        start()
        assert process._process is not None
        process._process.wait()

    monkeypatch.setattr(process, "_start", start_and_wait)
    with pytest.raises(NoAnswer, match="Opacus's process failed"):
        process.ask([steps(1.7, 0.05, 33)], 1e-5, 1.0)


def test_two_runs_in_one_ledger_cost_what_both_together_do(tmp_path: Path) -> None:
    """Opacus's figure of the second run alone is below what is charged for both; it is no excuse."""
    first, second = steps(1.0, 0.1, 60), steps(2.0, 0.2, 60)
    both = opinions([first, second], 1e-5)
    alone = [opinions([one], 1e-5).charged for one in (first, second)]
    assert max(alone) < both.charged <= sum(alone)
    limit = (max(alone) + both.ours) / 2
    with PrivacyLedger(tmp_path / "l", witness=tmp_path / "w", budget=Budget(epsilon=limit, delta=1e-5)) as ledger:
        ledger.charge("a round 1", first)
        assert ledger.spent() == pytest.approx(alone[0])
        with pytest.raises(BudgetExhausted):
            ledger.charge("b round 1", second)


def test_opacus_is_not_asked_about_a_part_of_what_it_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = opinions([steps(1.1, 0.11, 90)], 1e-5).charged
    assert not exceeds([steps(1.1, 0.11, 90)], whole, 1e-5)
    monkeypatch.setattr(second_opinion, "_asked", lambda *_: pytest.fail("asked"))
    assert not exceeds([steps(1.1, 0.11, 45)], whole, 1e-5)
    assert not exceeds([steps(1.1, 0.11, 30)] * 3, whole, 1e-5)
    for more in (
        [steps(1.1, 0.11, 91)],
        [steps(1.0, 0.11, 1)],
        [steps(1.1, 0.12, 1)],
        [steps(1.1, 0.11, 45), steps(9.0, 1.0, 1)],
    ):
        with pytest.raises(BaseException, match="asked"):
            exceeds(more, 2 * whole, 1e-5)


def test_a_statement_prints_every_figure_and_charges_the_largest() -> None:
    said = ExampleStatement(
        epsilon=1.0, delta=1e-5, noise_multiplier=1.0, sampling_rate=0.1, l2_clip_norm=1.0, steps=100
    )  # a device that states less than its own numbers cost
    found = said.opinions()
    assert found.prv is not None
    assert found.charged > 7
    lines = said.lines()
    assert lines[0] == f"epsilon {found.charged:.4g} at delta 1e-05"
    assert any(f"{found.ours:.4g} by ours" in line and f"{found.prv:.4g} by Opacus's PRV" in line for line in lines)


@pytest.mark.parametrize(("people", "named", "other"), [(0, "example", "person"), (3, "person", "example")])
def test_a_statement_speaks_of_the_unit_that_it_hides(people: int, named: str, other: str) -> None:
    said = ExampleStatement(
        epsilon=9.0,
        delta=1e-5,
        noise_multiplier=1.0,
        sampling_rate=0.1,
        l2_clip_norm=1.0,
        steps=9,
        examples_per_person=people,
    )
    many = {"example": "examples", "person": "people"}
    (neighbours,) = (line for line in said.lines() if line.startswith("neighbouring"))
    assert f"numbers of {many[named]}, one {named}'s gradients" in neighbours
    assert any(f"takes each {named} with" in line for line in said.lines())
    assert not any(many[other] in line for line in (neighbours, said.lines()[3]))


def test_a_device_that_states_more_than_its_numbers_cost_is_taken_at_its_word() -> None:
    numbers = {"delta": 1e-5, "noise_multiplier": 1.0, "sampling_rate": 0.1, "l2_clip_norm": 1.0, "steps": 100}
    asked = ExampleStatement(epsilon=1.0, **numbers).opinions()
    assert ExampleStatement(epsilon=20.0, **numbers).opinions().charged == 20.0, "a record of before both were told"
    assert ExampleStatement(epsilon=20.0, ours=19.0, prv=20.0, **numbers).opinions().prv == 20.0
    assert ExampleStatement(epsilon=20.0, ours=1.0, prv=1.0, **numbers).opinions().charged == 20.0
    assert ExampleStatement(epsilon=math.inf, ours=1.0, **numbers).opinions().charged == math.inf
    same = ExampleStatement(epsilon=asked.charged, ours=asked.ours, prv=asked.prv, **numbers)
    assert same.opinions() == asked


def test_a_grid_that_no_gaussian_lies_behind_is_ours_alone_to_judge() -> None:
    """Its rounding takes all of the noise there is: Opacus could only be asked about something else."""
    rough = Release(noise_multiplier=20.0, shares=2, share_sigma=0.9, parameters=1, devices=2)
    assert math.isfinite(total_epsilon([rough], 1e-3))
    found = opinions([rough], 1e-3)
    assert (found.prv, found.rdp, found.failure) == (None, None, second_opinion.NOT_GAUSSIAN)
    assert found.charged == found.ours


def test_steps_that_were_not_taken_are_not_asked_about() -> None:
    kept, none = steps(1.0, 0.1, 5), steps(2.0, 0.1, 0)
    assert second_opinion._sampled([(kept, 2), (none, 3)]) == (
        Steps(noise_multiplier=1.0, sampling_rate=0.1, count=10),
    )


@pytest.mark.parametrize(
    ("charges", "unit"),
    [
        ([steps(1.0, 0.1, 5), sums(1.0)], None),
        ([sums(1.0), steps(1.0, 0.1, 5, "person")], "client"),
        ([steps(1.0, 0.1, 5), steps(1.0, 0.1, 5, "person")], None),
        ([steps(1.0, 0.1, 5)], "person"),
        ([sums(1.0)], "example"),
    ],
)
def test_releases_that_add_up_otherwise_are_no_part_of_one_history(charges: list[Charge], unit: Protected) -> None:
    """What one kind of releases was allowed says nothing about several kinds, nor about another unit inside."""
    assert second_opinion._steps_of(charges, unit) is None
    alone = charges[:1]
    own = "client" if isinstance(alone[0], Release) else alone[0].unit
    assert second_opinion._steps_of(alone, own) == second_opinion._steps_of(alone, None) != ()


POSSIBLE = {"epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 1.0, "sampling_rate": 0.1, "l2_clip_norm": 1.0}


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon": math.inf}, {"epsilon": -1e-9}, {"ours": math.nan}, {"prv": -1.0},
        {"noise_multiplier": 0.049}, {"noise_multiplier": 1.01e4}, {"noise_multiplier": math.nan},
        {"l2_clip_norm": 0.0}, {"l2_clip_norm": -1.0}, {"l2_clip_norm": math.inf}, {"l2_clip_norm": math.nan},
        {"delta": 0.9e-12}, {"delta": 1.0}, {"sampling_rate": 0.9e-10}, {"sampling_rate": 1.01},
        {"steps": 0}, {"steps": 2**34 + 1},
    ],
)  # fmt: skip
def test_a_statement_with_one_figure_out_of_its_range_is_impossible(changed: dict[str, float]) -> None:
    assert ExampleStatement(**POSSIBLE, steps=1).possible
    assert not ExampleStatement(**{**POSSIBLE, "steps": 1, **changed}).possible  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "edge",
    [
        {"epsilon": 0.0}, {"ours": 0.0, "prv": 0.0}, {"noise_multiplier": 0.05}, {"noise_multiplier": 1e4},
        {"delta": 1e-12}, {"sampling_rate": 1e-10}, {"sampling_rate": 1.0}, {"steps": 2**34},
    ],
)  # fmt: skip
def test_a_statement_at_the_edge_of_a_range_is_possible(edge: dict[str, float]) -> None:
    assert ExampleStatement(**{**POSSIBLE, "steps": 1, **edge}).possible  # type: ignore[arg-type]


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_a_statement_about_clients_says_how_the_clip_norm_moves(quantile: float | None) -> None:
    said = Statement(
        opinions=Opinions(ours=1.0, prv=1.0, rdp=1.1), delta=1e-5, noise_multiplier=2.0, l2_clip_norm=0.25, rounds=3,
        threshold=5, colluders=1, consistent=True, clip_quantile=quantile,
    )  # fmt: skip
    (line,) = (line for line in said.lines() if "clip norm" in line)
    assert line.startswith("noise multiplier 2, L2 clip norm 0.25 over the whole contribution of a client")
    assert ("it follows the 0.5 quantile of the clients' norms" in line) == (quantile is not None)
