"""What a run asks of this device, in words and numbers that its owner can judge before anything of it is done.

Made by the agent from terms that the coordinator has signed; kept by ``fedpeft_client.site_runs``.
"""

from dataclasses import dataclass

from fedpeft.errors import RosterMissing
from fedpeft.round.plan import LearningPlan
from fedpeft.round.signed_request import SignedRequest
from fedpeft.round.work import plan_digest
from fedpeft_client.site import methods_of

__all__ = ["Question", "digest_of", "question_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a run asks of this device.

    Args:
        run_id: which run; from the coordinator, so print it with care.
        at: when it was asked, UTC, ISO 8601.
        plan_sha256: of ``learning``; what a yes is for.
        base, task, methods: what is trained, and on which base model.
        rounds, local_steps: how often and how long.
        privacy: what the run promises, in one line.
        secure_sum: mode and smallest cohort.
        parameters: coordinates of this device's masked input a round, at most.
        devices, organisations: on the roster of the round that asked.
        source: where the examples are that it would train on.
        learning: the whole plan, JSON.
        needs_yes: whether the site's rules leave the run to its owner.
    """

    run_id: str
    at: str
    plan_sha256: str
    base: str
    task: str
    methods: tuple[str, ...]
    rounds: int
    local_steps: int
    privacy: str
    secure_sum: str
    parameters: int
    devices: int
    organisations: int
    source: str
    learning: str
    needs_yes: bool


def question_of(signed: SignedRequest, *, source: str, at: str, needs_yes: bool) -> Question:
    """What a round's signed terms ask for, in words and numbers.

    Args:
        signed: what the coordinator has signed.
        source: the site's examples.
        at: now, UTC, ISO 8601.
        needs_yes: see ``Question``.

    Raises:
        RosterMissing: the terms came without their roster.
    """
    plan, terms = signed.plan, signed.terms
    if not terms.participants:
        raise RosterMissing(f"Expected the roster with which run {plan.run_id} began, found none here.")
    return Question(
        run_id=plan.run_id,
        at=at,
        plan_sha256=digest_of(plan),
        base=plan.base,
        task=plan.task.kind,
        methods=methods_of(plan.adapter),
        rounds=plan.rounds.count,
        local_steps=plan.train.local_steps,
        privacy=_privacy(plan),
        secure_sum=f"{terms.mode.value}, {terms.min_cohort} organisations at least",
        parameters=sum(block.length for block in terms.blocks),
        devices=len(terms.participants),
        organisations=len({person.organisation for person in terms.participants}),
        source=source,
        learning=plan.to_json(),
        needs_yes=needs_yes,
    )


_PROTECTED = {"example": "each example", "person": "each person here, with all of their examples"}
"""Whom an epsilon is about, by ``ExampleTerms.unit``."""


def _privacy(plan: LearningPlan) -> str:
    """The run's promise, or that there is none."""
    if (terms := plan.privacy) is not None:
        whose = _PROTECTED[terms.unit]
        return f"{whose}: epsilon {terms.epsilon:g} at delta {terms.delta:g} over the run (DP-SGD here)"
    if (client := plan.client_privacy) is not None and client.epsilon is not None and client.delta is not None:
        return f"each client: epsilon {client.epsilon:g} at delta {client.delta:g} over the run (noise in the sum)"
    return "no noise: the sum of all devices is opened as it is"


def digest_of(plan: LearningPlan) -> str:
    """What a yes is for: SHA-256 of the plan's JSON, hex."""
    return plan_digest(plan.to_json()).hex()
