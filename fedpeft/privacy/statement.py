"""An epsilon with everything without which it means nothing. Whoever prints one prints this."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from fedpeft.privacy.sampled_gaussian import MAX_NOISE_MULTIPLIER, SampledRelease
from fedpeft.privacy.second_opinion import Opinions, opinions

__all__ = ["ExampleStatement", "Statement"]

MIN_NOISE_MULTIPLIER = 0.05
"""A step with less noise, if it takes an example, promises it nothing."""

MAX_STEPS = 2**34
"""More than the longest run has: 100,000 rounds of 100,000 steps."""

LEAST_DELTA = 1e-12
"""Below it the accountant's rounding decides; it says infinite."""

LEAST_RATE = 1e-10
"""One example a step of a device that has the most, and a factor of four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One promise, complete.

    Args:
        opinions, delta: the promise: what each accountant says, of which the larger is charged, and at which delta.
        noise_multiplier: z.
        l2_clip_norm: C.
        rounds: releases that it covers.
        threshold: organisations that open a block.
        colluders: devices that may work with the coordinator.
        consistent: whether the consistency round runs (secagg.mode = "full").
        clip_quantile: of the devices' norms, which the clip norm follows from C on; None: it stays C.
        noised_metrics: whether each round's sum held noised metrics; else none are collected.
    """

    opinions: Opinions
    delta: float
    noise_multiplier: float
    l2_clip_norm: float
    rounds: int
    threshold: int
    colluders: int
    consistent: bool
    clip_quantile: float | None = None
    noised_metrics: bool = False

    @property
    def epsilon(self) -> float:
        """What is charged."""
        return self.opinions.charged

    def lines(self) -> tuple[str, ...]:
        """What to print, one fact per line."""
        metrics = "metrics: none are collected; loss, accuracy and counts would be releases of their own"
        if self.noised_metrics:
            metrics = (
                "metrics: the devices' mean accuracy and losses of each round, under the same noise, which the noise "
                "multiplier covers; counts are not collected"
            )
        kind = "even a malicious one" if self.consistent else "honest but curious (secagg.mode = fast)"
        clip = f"L2 clip norm {self.l2_clip_norm:g} over the whole contribution of a client"
        if self.clip_quantile is not None:
            clip += (
                f" at first; it follows the {self.clip_quantile:g} quantile of the clients' norms by one noised bit of "
                "each, which the noise multiplier covers"
            )
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g}",
            "unit: one client, with all of its examples, over the whole run",
            (
                "neighbouring runs: the same roster, one client's contributions replaced by zero; "
                "that it takes part is not hidden"
            ),
            "sampling: no amplification is claimed; the coordinator knows whom it asks",
            f"noise multiplier {self.noise_multiplier:g}, {clip}",
            f"rounds: {self.rounds}, each a release, composed adaptively",
            self.opinions.line(),
            (
                f"adversary: the coordinator ({kind}) and {self.colluders} colluding devices; "
                f"sized for {self.threshold - self.colluders} honest shares of the {self.threshold} that open a block"
            ),
            metrics,
            (
                "not covered: tuning runs, early stopping by hand, which devices took part and when, message sizes "
                "and timing, and whatever a simulation shows of its own data"
            ),
        )

    def __str__(self) -> str:
        """The same in one line, for logs."""
        return "; ".join(self.lines())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleStatement:
    """What one device promises each of its training examples, or people, in one run. Follows from counts alone.

    Args:
        epsilon, delta: the promise: what is charged, the larger of ``ours`` and ``prv``.
        noise_multiplier: z, of every step.
        l2_clip_norm: C, of the gradient of every unit.
        sampling_rate: q, with which a step takes each unit; of correlated noise, each one whose turn it is.
        steps: charged, those of repeated and lost rounds included; of correlated noise, the turns of one unit.
        examples_per_person: people are hidden, and a step looks at so many examples of each at most; 0: examples are.
        ours: by our accountant; None: ``epsilon`` is, and nobody else was asked (records of before Opacus was).
        prv: by Opacus's; None: it gave none.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    l2_clip_norm: float
    sampling_rate: float
    steps: int
    examples_per_person: int = 0
    ours: float | None = None
    prv: float | None = None

    @property
    def unit(self) -> Literal["example", "person"]:
        """What is hidden."""
        return "person" if self.examples_per_person else "example"

    @property
    def possible(self) -> bool:
        """Whether a device can mean it: finite numbers within their ranges. Whoever hears one checks this first.

        Within them the accountants answer, in bounded time and memory:
        tests/cli/test_privacy_statement.py::test_at_the_corners_of_what_may_be_heard_the_accountants_answer.
        """
        figures = [one for one in (self.epsilon, self.ours, self.prv) if one is not None]
        return (
            all(math.isfinite(one) and one >= 0 for one in figures)
            and MIN_NOISE_MULTIPLIER <= self.noise_multiplier <= MAX_NOISE_MULTIPLIER
            and 0 < self.l2_clip_norm < math.inf
            and LEAST_DELTA <= self.delta < 1
            and LEAST_RATE <= self.sampling_rate <= 1
            and 1 <= self.steps <= MAX_STEPS
        )

    def opinions(self) -> Opinions:
        """What each accountant says about these steps, asked anew; what the device states counts where it is more."""
        steps = SampledRelease(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            parameters=1,
            unit=self.unit,
        )
        found = opinions([steps], self.delta)
        ours = max(found.ours, self.epsilon if self.ours is None else self.ours)
        prv = max((one for one in (found.prv, self.prv) if one is not None), default=None)
        found = replace(found, ours=ours, prv=prv)
        return found if found.charged >= self.epsilon else replace(found, ours=self.epsilon)

    def lines(self, *, correlated: bool = False) -> tuple[str, ...]:
        """What to print, one fact per line.

        Args:
            correlated: the plan is of correlated noise; it is the plan that says so, not the statement.
        """
        found = self.opinions()
        people = self.unit == "person"
        one, many = ("person", "people") if people else ("example", "examples")
        clipped = (
            f"the mean gradient of at most {self.examples_per_person} of a person's examples, drawn anew in each step"
            if people
            else "each example's gradient"
        )
        matrix = ", over the column norm of its matrix" if correlated else ""
        twice = (
            "somebody whose rows name them in two ways, or who is on several devices against what sites and run "
            "declare, counts once for each; somebody's rows that others hold"
            if people
            else "an example that several devices or records hold counts once for each"
        )
        return (
            f"epsilon {found.charged:.4g} at delta {self.delta:g}",
            (
                "unit: one person of one device, with all of their examples, over the whole run"
                if people
                else "unit: one training example of one device, over the whole run"
            ),
            (
                f"neighbouring runs: the same devices and numbers of {many}, one {one}'s gradients replaced by "
                f"zero; how many {many} a device has is public, to a factor of two"
            ),
            self._sampling(one, many, correlated=correlated),
            (
                f"noise multiplier {self.noise_multiplier:g} on the sum of a step{matrix}, "
                f"L2 clip norm {self.l2_clip_norm:g} on {clipped}, over all blocks"
            ),
            f"{'turns' if correlated else 'steps'}: {self.steps}, composed adaptively",
            found.line(),
            "metrics: none are collected; loss, accuracy and counts would be releases of their own",
            "adversary: whoever sees every update of the device, even without secure aggregation, and its own history",
            (
                f"not covered: {twice}; tuning runs, early stopping by hand, timing, and whatever a simulation shows "
                "of its own data"
            ),
        )

    def _sampling(self, one: str, many: str, *, correlated: bool) -> str:
        by = f"with probability {self.sampling_rate:.4g}, by the operating system's randomness"
        if not correlated:
            return f"sampling: Poisson, each step takes each {one} {by}"
        return (
            f"sampling: Poisson, a device's {many} are in groups by a secret hash, and every b-th step is a group's "
            f"turn; a turn takes each {one} of the group {by}. Noise: correlated over b steps and no more (banded "
            f"matrix factorization, b from the device's size class; 1 is independent noise), so no two turns of one "
            f"{one} share any"
        )
