"""Client-level privacy of one run, on the coordinator: the noise of a round, the ledger, what was spent.

A charge is made once per round, before the devices hear whose sum it is, and stays made if the round is then burnt: the
coordinator may have seen the sum. So a run that loses rounds late may end before its last one, with exit code 7, and is
never resumed past its budget.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from fedpeft import secagg
from fedpeft.config.model import RunConfig
from fedpeft.errors import BudgetExhausted, IntegrityFailed
from fedpeft.privacy import (
    CLIP_BIT,
    NOISED_METRICS,
    NoiseTerms,
    PrivacyLedger,
    Statement,
    next_clip_norm,
    read_lanes,
)
from fedpeft.round.metrics import NOTHING_MEASURED, Measured
from fedpeft_server.privacy.noise_plan import NoisePlan, plan_of, read_budget

__all__ = ["LEDGER", "ClientPrivacy"]

LEDGER = Path("privacy") / "ledger.jsonl"
"""Within the run directory."""

CLIP_NORM = "l2_clip_norm"
"""Under this name a commit keeps the clip norm of the next round, when it is adaptive."""


class ClientPrivacy:
    """One run's noise and ledger. Close it, or use it in a ``with``.

    Args:
        plan: from ``NoisePlan.of``.
        ledger: the run's, held.
    """

    def __init__(self, plan: NoisePlan, ledger: PrivacyLedger) -> None:
        self.plan, self._ledger = plan, ledger
        self._clip_norm: float | None = None

    @classmethod
    def open(cls, config: RunConfig, *, parameters: int, run: Path, witness: Path) -> Self:
        """Plans the run and opens its ledger.

        Args:
            config: the run.
            parameters: trainable coordinates of the union adapter.
            run: the run directory.
            witness: where the ledger's witness lies; outside the run directory.

        Raises:
            ConfigInvalid: the plan is impossible.
            IntegrityFailed: the ledger is not the newest.
        """
        plan = plan_of(config, parameters)
        return cls(plan, PrivacyLedger(run / LEDGER, witness=witness, budget=read_budget(config.privacy)))

    def terms(self, devices: int) -> NoiseTerms:
        """The noise of a round with so many invited devices.

        Raises:
            BudgetExhausted: the budget does not allow its release; nobody has been asked to train yet.
        """
        mechanism = self.plan.mechanism(devices, self._clip_norm)
        if self._ledger.would_exceed(mechanism.release):
            budget = self._ledger.budget
            raise BudgetExhausted(
                f"Expected epsilon={budget.epsilon:g} at delta={budget.delta:g} to allow another round, found "
                f"{self._ledger.spent():.4g} spent in {len(self._ledger.entries)} releases; the rounds committed so "
                "far stand. Lost rounds count: their sums may have been seen."
            )
        return mechanism.terms

    def charge(self, label: str, devices: int) -> float:
        """Pays for one release and returns what is spent by our accountant; call it before the sum is opened."""
        self._ledger.charge(label, self.plan.mechanism(devices, self._clip_norm).release)
        return self._ledger.spent_by(lambda _: True, self._ledger.budget.delta)

    def restore(self, committed: Mapping[str, object]) -> None:
        """Goes on with the clip norm of the last commit, as ``after`` gave it."""
        norm = committed.get(CLIP_NORM)
        if self.plan.privacy.clip == "fixed":
            return
        if not isinstance(norm, float) or not norm > 0:
            raise IntegrityFailed(f"Expected a clip norm > 0 in the last commit, found {norm!r}.")
        self._clip_norm = norm

    def after(self, terms: NoiseTerms | None, summed: secagg.Summed) -> dict[str, float]:
        """Moves an adaptive clip norm by what the round's bits say; returns what its commit must hold."""
        privacy = self.plan.privacy
        if privacy.clip == "fixed" or terms is None:
            return {}
        self._clip_norm = next_clip_norm(
            terms.l2_clip_norm,
            {CLIP_BIT: float(summed.sums[CLIP_BIT].values[0])} if CLIP_BIT in summed.sums else {},
            weight=terms.bit_weight,
            survivors=len(summed.survivors),
            quantile=privacy.clip_quantile,
            rate=privacy.clip_learning_rate,
        )
        return {CLIP_NORM: self._clip_norm}

    def kept(self, terms: NoiseTerms | None) -> dict[str, float]:
        """What the commit of a burnt round must hold: nobody's bits were seen, so the clip norm stays."""
        if self.plan.privacy.clip == "fixed" or terms is None:
            return {}
        self._clip_norm = terms.l2_clip_norm
        return {CLIP_NORM: terms.l2_clip_norm}

    def measured(self, terms: NoiseTerms | None, summed: secagg.Summed) -> Measured:
        """The round's noised metrics, without any count; nothing where they are suppressed."""
        if terms is None or NOISED_METRICS not in summed.sums:
            return NOTHING_MEASURED
        lanes = summed.sums[NOISED_METRICS].values
        found = read_lanes(lanes, weight=terms.metric_weight, survivors=len(summed.survivors))
        return replace(NOTHING_MEASURED, train_loss=found.train_loss, loss=found.loss, accuracy=found.accuracy)

    def statement(self) -> Statement:
        """What has been spent so far."""
        return self.plan.statement([entry.release for entry in self._ledger.entries])

    def close(self) -> None:
        """Lets go of the ledger; may be called again."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
