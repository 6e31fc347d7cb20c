"""A finished round as its row in metrics.jsonl, and as one line for a person."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from fedpeft import secagg
from fedpeft.ids import ParticipantId, RoundId
from fedpeft.round.messages import FailureReason
from fedpeft.round.metrics import Measured
from fedpeft.round.rates.search import scale_of_losses
from fedpeft.round.task import Member, RoundOutcome, Traffic
from fedpeft.tasks.measure import told
from fedpeft_server.run.records import ClientRound, ClientState, RoundMetrics

__all__ = ["round_row", "sentence"]


def round_row(
    round_id: RoundId,
    outcome: RoundOutcome,
    summed: secagg.Summed,
    measured: Measured,
    members: Sequence[Member],
    *,
    seconds: float,
) -> RoundMetrics:
    """The row of a round that ended in a sum: cohort means, and of each device what the network shows anyway."""
    return replace(
        _row(round_id, outcome, members, survivors=summed.survivors, seconds=seconds),
        loss=measured.loss,
        accuracy=measured.accuracy,
        evaluators=measured.evaluators,
        train_loss=measured.train_loss,
        metrics=dict(measured.metrics),
        rate_losses=measured.rate_losses,
        skipped={str(block_id): reason for block_id, reason in summed.skipped.items()},
    )


def burnt_row(
    round_id: RoundId, outcome: RoundOutcome, problem: str, members: Sequence[Member], *, seconds: float
) -> RoundMetrics:
    """The row of a round whose survivors were fixed and that has no sum."""
    return replace(_row(round_id, outcome, members, survivors=frozenset(), seconds=seconds), burnt=problem)


def _row(
    round_id: RoundId,
    outcome: RoundOutcome,
    members: Sequence[Member],
    *,
    survivors: Collection[ParticipantId],
    seconds: float,
) -> RoundMetrics:
    """Who took part and what it cost."""
    names = outcome.participants
    summed = {names[place] for place in survivors}
    rejected = {
        names[place]: f"{entry.reason.value}: {entry.detail}"
        for place, entry in outcome.result.rejected.items()
        if not outcome.traffic[names[place]].not_needed
    }
    clients = []
    for member in members:
        name, account = member.profile.device, outcome.traffic[member.profile.device]
        clients.append(
            ClientRound(
                client=name,
                methods=member.profile.methods,
                state=_state(name in summed, account, name in rejected),
                reason=account.failure or rejected.get(name, ""),
                bytes_up=account.bytes_up,
                bytes_down=account.bytes_down,
                seconds=account.seconds,
            )
        )
    return RoundMetrics(
        round=round_id,
        loss=None,
        accuracy=None,
        evaluators=0,
        devices_invited=len(members),
        devices_ready=sum(account.ready for account in outcome.traffic.values()),
        devices_survived=len(summed),
        bytes_up=sum(account.bytes_up for account in outcome.traffic.values()),
        bytes_down=sum(account.bytes_down for account in outcome.traffic.values()),
        seconds=seconds,
        rejected=rejected,
        clients=tuple(clients),
    )


def sentence(row: RoundMetrics) -> str:
    """One line: the state that the round began with, who took part, what it cost."""
    if row.burnt:
        return f"no sum, and none is asked for again: {row.burnt}; the state stays"
    parts = [f"{row.devices_survived} of {row.devices_invited} devices"]
    if row.loss is not None:
        noised = "" if row.evaluators else " with noise"
        accuracy = "" if row.accuracy is None else f" accuracy {row.accuracy:.3f}"
        further = told(row.metrics)
        parts.insert(0, f"loss {row.loss:.4f}{accuracy}{' ' * bool(further)}{further}{noised} at its start")
    if row.rate_losses:
        scale = scale_of_losses(row.rate_losses)
        parts.append(f"measured: from the next round on {scale:.3g} times the table's learning rates")
    if row.skipped:
        parts.append(f"skipped {', '.join(sorted(row.skipped))}")
    parts.append(f"{row.bytes_up / 1e6:.2f} MB up, {row.bytes_down / 1e6:.2f} MB down, {row.seconds:.1f} s")
    return "; ".join(parts)


def _state(survived: bool, account: Traffic, rejected: bool) -> ClientState:
    if survived:
        return "summed"
    if account.not_needed:
        return "not_needed"
    if account.failure == FailureReason.REFUSED.value:
        return "refused"
    if account.failure == FailureReason.LATER.value:
        return "later"
    return "rejected" if rejected and not account.failure else "dropped"
