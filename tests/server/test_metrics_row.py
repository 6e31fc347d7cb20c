"""A finished round as its row: what is said of each device, and what the sums are."""

import pytest

from fedpeft import secagg
from fedpeft.ids import BlockId, NodeId, ParticipantId, RoundId
from fedpeft.round.messages import Profile
from fedpeft.round.metrics import Measured
from fedpeft.round.task import Member, RoundOutcome, Traffic
from fedpeft_server.run.metrics_row import burnt_row, round_row, sentence
from fedpeft_server.run.records import RoundMetrics, from_json, to_json

MEASURED = Measured(evaluators=3, train_loss=0.75, loss=0.5, accuracy=0.875)


def member(place: int) -> Member:
    profile = Profile(device=f"d{place}", organisation="o", identity=bytes(32), methods=f"lora r{place}", held=())
    return Member(node=NodeId(1000 + place), profile=profile)


def row_of(
    traffic: dict[str, Traffic], survivors: set[int], rejected: dict[int, secagg.Rejection] | None = None
) -> RoundMetrics:
    places = {ParticipantId(place): f"d{place}" for place in range(1, 1 + len(traffic))}
    summed = secagg.Summed(
        sums={},
        survivors=frozenset(map(ParticipantId, survivors)),
        context=bytes(32),
        weight_classes=dict.fromkeys(map(ParticipantId, survivors), 0),
        skipped={BlockId("bitfit"): "expected 3 organisations, found 1"},
        rejected={ParticipantId(place): entry for place, entry in (rejected or {}).items()},
    )
    outcome = RoundOutcome(result=summed, traffic=traffic, participants=places, is_final=True)
    members = [member(place) for place in places]
    return round_row(RoundId(7), outcome, summed, MEASURED, members, seconds=2.5)


def test_a_burnt_row_says_why_and_counts_nobody_in() -> None:
    traffic = {"d1": Traffic(bytes_up=5, ready=True), "d2": Traffic(bytes_up=6, ready=True, failure="no answer")}
    places = {ParticipantId(1): "d1", ParticipantId(2): "d2"}
    lost = secagg.Rejection(reason=secagg.Reason.DROPPED_OUT, detail="no reply in stage reveal")
    end = secagg.Aborted(
        reason=secagg.Reason.SECRET_LOST,
        detail="too few",
        blamed=frozenset({ParticipantId(2)}),
        restartable=False,
        rejected={ParticipantId(2): lost},
    )
    outcome = RoundOutcome(result=end, traffic=traffic, participants=places, is_final=True)
    row = burnt_row(RoundId(7), outcome, "secret-lost: too few", [member(1), member(2)], seconds=1.0)
    assert (row.burnt, row.loss, row.devices_ready, row.devices_survived, row.bytes_up) == (
        "secret-lost: too few", None, 2, 0, 11,
    )  # fmt: skip
    assert set(row.rejected) == {"d2"}
    assert sentence(row) == "no sum, and none is asked for again: secret-lost: too few; the state stays"
    assert from_json(RoundMetrics, to_json(row), where="here") == row


def test_a_row_holds_the_means_and_sums_up_the_traffic() -> None:
    traffic = {f"d{i}": Traffic(bytes_up=i, bytes_down=10 * i, seconds=0.5 * i, ready=True) for i in (1, 2, 3)}
    row = row_of(traffic, {1, 2, 3})
    assert (row.round, row.loss, row.accuracy, row.evaluators, row.train_loss) == (7, 0.5, 0.875, 3, 0.75)
    assert (row.devices_invited, row.devices_ready, row.devices_survived) == (3, 3, 3)
    assert (row.bytes_up, row.bytes_down, row.seconds) == (6, 60, 2.5)
    assert row.skipped == {"bitfit": "expected 3 organisations, found 1"}
    assert [(c.client, c.methods, c.bytes_up, c.bytes_down, c.seconds) for c in row.clients] == [
        ("d1", "lora r1", 1, 10, 0.5),
        ("d2", "lora r2", 2, 20, 1.0),
        ("d3", "lora r3", 3, 30, 1.5),
    ]
    assert from_json(RoundMetrics, to_json(row), where="here") == row


@pytest.mark.parametrize(
    ("failure", "rejection", "state", "reason"),
    [
        ("", None, "dropped", ""),
        ("no answer within 10 s", secagg.Reason.DROPPED_OUT, "dropped", "no answer within 10 s"),
        ("refused", secagg.Reason.DROPPED_OUT, "refused", "refused"),
        ("", secagg.Reason.BAD_SIGNATURE, "rejected", "bad-signature: why"),
    ],
)
def test_a_device_that_was_lost_is_named_with_its_reason(
    failure: str, rejection: secagg.Reason | None, state: str, reason: str
) -> None:
    traffic = {"d1": Traffic(ready=True), "d2": Traffic(failure=failure)}
    rejected = {2: secagg.Rejection(reason=rejection, detail="why")} if rejection else {}
    row = row_of(traffic, {1}, rejected)
    assert [(c.client, c.state, c.reason) for c in row.clients] == [("d1", "summed", ""), ("d2", state, reason)]
    assert (row.devices_ready, row.devices_survived) == (1, 1)
    assert set(row.rejected) == ({"d2"} if rejection else set())


def test_a_device_that_was_not_needed_is_no_failure() -> None:
    traffic = {"d1": Traffic(ready=True), "d2": Traffic(not_needed=True)}
    late = {2: secagg.Rejection(reason=secagg.Reason.DROPPED_OUT, detail="no reply in stage fit")}
    row = row_of(traffic, {1}, late)
    assert [(c.client, c.state, c.reason) for c in row.clients] == [("d1", "summed", ""), ("d2", "not_needed", "")]
    assert row.rejected == {}


def test_the_sentence_says_what_it_was_for_and_what_it_cost() -> None:
    traffic = {f"d{i}": Traffic(bytes_up=500_000, bytes_down=1_000_000, ready=True) for i in (1, 2)}
    assert sentence(row_of(traffic, {1, 2})) == (
        "loss 0.5000 accuracy 0.875 at its start; 2 of 2 devices; skipped bitfit; 1.00 MB up, 2.00 MB down, 2.5 s"
    )
