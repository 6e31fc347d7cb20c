"""The coordinator's side of one round: four or five exchanges, a sum or a named reason (docs/design.md, section 2).

This module moves bytes and keeps time; what may be summed is decided by the secure aggregation
(``fedpeft.secagg``), which sees every reply. A round ends as ``Summed`` or ``Aborted``; there is no third
way, and no plain sum. The caller commits.
"""

from collections.abc import Sequence
from typing import cast

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.config.model import Rounds
from fedpeft.entropy import Entropy
from fedpeft.round.attempt import Attempt
from fedpeft.round.events import Observer
from fedpeft.round.pending import Note, PendingRound, PendingStore, ReceivedReply, StageClosed
from fedpeft.round.summing import OpenSum, SecureSum, SumRound
from fedpeft.round.task import Member, RoundOutcome, RoundTask
from fedpeft.round.terms import participants_of, round_terms
from fedpeft.round.transport import SMALL_ANSWER_BYTES, Stage, Transport
from fedpeft.wire import decode, encode

__all__ = ["OpenSum", "SecureSum", "SumRound", "resume_round", "run_round"]

OPENING = ("consist", "reveal")
"""The stages in which devices know the survivors: nothing is tried anew from there on."""

ASKED_AT_MOST = 2
"""How often a device is asked in each of them; it answers a repeat with the same bytes."""


class _KeepNothing:
    """For a sum that nobody needs after this process: tests, and measurements."""

    def keep(self, pending: PendingRound) -> None:
        """See ``PendingStore``."""

    def note(self, note: Note) -> None:
        """See ``PendingStore``."""


WIDEST_WORD_BYTES = 8
"""Of a ring."""


def run_round(
    task: RoundTask,
    state: AdapterState,
    members: Sequence[Member],
    transport: Transport,
    *,
    rounds: Rounds,
    identity: secagg.IdentityKey,
    entropy: Entropy,
    observe: Observer,
    open_sum: OpenSum = SecureSum,
    store: PendingStore | None = None,
) -> RoundOutcome:
    """Run one attempt at one round with these members, to its sum or its reason.

    Args:
        task: what to do.
        state: the global state that every device starts from.
        members: whom to ask; at least three.
        transport: how.
        rounds: deadlines, and how many devices must finish.
        identity: the coordinator's signing key; devices know its public half from enrolment.
        entropy: for the round's keys.
        observe: told of every transition.
        open_sum: the secure sum; another one only to measure what it costs (simulation).
        store: makes the round durable before the devices hear of its survivors; what it raises, e.g. that the privacy
            budget is spent, ends the attempt with the sum still masked. None: nothing outlives this process, and no
            other attempt at the round may follow.
    """
    spec = round_terms(
        task.plan,
        state.spec,
        participants_of(members),
        task.work(state),
        round_id=task.round_id,
        attempt=task.attempt,
        stage_deadline_s=rounds.stage_deadline_s,
        history=task.past.head,
        noise=task.noise,
    )
    summed = sum(block.length for block in spec.blocks) * WIDEST_WORD_BYTES
    attempt = Attempt(task, members, transport, observe, answer_bytes=SMALL_ANSWER_BYTES + summed)
    summing = open_sum(spec, identity, entropy)
    store = store or _KeepNothing()
    end: secagg.Summed | secagg.Aborted | None = None
    masked = False
    while end is None and summing.stage not in OPENING:
        masked = summing.stage == "mask"
        if summing.stage == "fit":
            replies = attempt.fit(summing.requests, state, deadline_s=rounds.fit_deadline_s)
        else:
            replies = attempt.later(
                Stage(f"train.{summing.stage}"), summing.requests, deadline_s=rounds.stage_deadline_s
            )
        for sender, reply in replies:
            if isinstance(reply, str):
                summing.fail(sender, reply)
            else:
                summing.receive(sender, reply)
            if summing.stage == "fit" and summing.answered == task.target_cohort:
                # The roster is who is ready by now, and every threshold follows from it: nobody is missed later.
                replies.close()
                attempt.release_the_others(task.target_cohort)
                break
        end = summing.close_stage()
    if end is None and len(summing.requests) < rounds.min_devices:
        # A sum that the caller would not use must not be opened: beside the next attempt's it tells too much.
        end = attempt.too_few(survivors=len(summing.requests), needed=rounds.min_devices)
    if end is not None:
        # Under noise a device masks once per round (ADR 0024): another attempt would find nobody.
        return attempt.outcome(end, is_final=masked and task.noise is not None)
    store.keep(attempt.pending(summing))
    return attempt.outcome(_opened(summing, attempt, rounds, store), is_final=True)


def resume_round(
    pending: PendingRound,
    notes: Sequence[Note],
    task: RoundTask,
    members: Sequence[Member],
    transport: Transport,
    *,
    rounds: Rounds,
    observe: Observer,
    store: PendingStore,
) -> RoundOutcome:
    """Go on with a round whose survivors were fixed when the coordinator died: the same questions, no others.

    Args:
        pending, notes: what a store holds.
        task: as ``run_round`` was given it.
        members: the kept ones in their order, each where it can be reached now, or ``NOWHERE``.
        transport, rounds, observe, store: see ``run_round``.
    """
    attempt = Attempt(task, members, transport, observe, accounts=pending.accounts)
    summing = SecureSum.resumed(pending.summing)
    end: secagg.Summed | secagg.Aborted | None = None
    for note in notes:
        match note:
            case ReceivedReply():
                summing.receive(note.sender, cast("secagg.Reply", decode(note.reply, secagg.REPLIES)))
            case StageClosed():
                end = summing.close_stage()
    if end is None:
        end = _opened(summing, attempt, rounds, store)
    return attempt.outcome(end, is_final=True)


def _opened(summing: SumRound, attempt: Attempt, rounds: Rounds, store: PendingStore) -> secagg.Summed | secagg.Aborted:
    """CONSIST and REVEAL, each asked twice at most: there is no other attempt, so a lost reply is asked for again."""
    end: secagg.Summed | secagg.Aborted | None = None
    while end is None:
        stage = summing.stage
        for _ in range(ASKED_AT_MOST):
            for sender, reply in attempt.later(
                Stage(f"train.{stage}"), summing.requests, deadline_s=rounds.stage_deadline_s
            ):
                if not isinstance(reply, str):  # a failure is silence here: the device may be back in a moment
                    store.note(ReceivedReply(sender=sender, reply=encode(reply)))
                    summing.receive(sender, reply)
            end = summing.close_stage()
            if not isinstance(end, secagg.Aborted):
                store.note(StageClosed(stage=stage))
                break
            if not summing.requests:
                break  # everybody has answered: asking again changes nothing
    return end
