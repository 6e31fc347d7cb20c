"""When another attempt at a round is worth it, and how soon."""

import pytest

from fedpeft.errors import RunFailed
from fedpeft.ids import RoundId
from fedpeft.round.events import Event, EventKind
from fedpeft.round.transport import Stage
from fedpeft_server.jobs.attempts import BACK_OFF_S, LATER_S, Attempts

ROUND = RoundId(3)


def attempt(attempts: Attempts, answers: dict[str, str]) -> None:
    """One attempt in which these devices are asked; an empty answer is none that failed."""
    attempts.seen(Event(kind=EventKind.ROUND_STARTED, round_id=ROUND))
    for device in answers:
        attempts.seen(Event(kind=EventKind.ASKED, round_id=ROUND, stage=Stage.FIT, device=device))
    for device, detail in answers.items():
        if detail:
            attempts.seen(Event(kind=EventKind.FAILED, round_id=ROUND, stage=Stage.FIT, device=device, detail=detail))
    attempts.seen(Event(kind=EventKind.ABORTED, round_id=ROUND))


def test_the_first_attempt_waits_for_nothing_and_later_ones_longer_and_longer() -> None:
    attempts, waited = Attempts(), []
    for _ in range(5):
        waited.append(attempts.before(ROUND))
        attempt(attempts, {"a": "unable", "b": ""})
    assert waited == [0.0, *BACK_OFF_S, BACK_OFF_S[-1]]
    assert attempts.before(RoundId(4)) == 0.0


def test_a_reason_that_stays_and_that_every_device_gives_ends_the_run_at_once() -> None:
    attempts = Attempts()
    attempts.before(ROUND)
    attempt(attempts, {"a": "refused", "b": "refused", "c": "refused"})
    with pytest.raises(RunFailed, match="all 3 answer 'refused'"):
        attempts.before(ROUND)


@pytest.mark.parametrize(
    "answers",
    [
        {"a": "refused", "b": "refused", "c": ""},
        {"a": "refused", "b": "no answer within 5 s"},
        {"a": "unable", "b": "unable"},
        {"a": "missing-state"},
        {},
    ],
)
def test_what_may_pass_is_tried_again(answers: dict[str, str]) -> None:
    attempts = Attempts()
    attempts.before(ROUND)
    attempt(attempts, answers)
    assert attempts.before(ROUND) == BACK_OFF_S[0]


def test_sites_that_take_part_at_other_hours_are_asked_again_later_and_never_end_the_run() -> None:
    attempts = Attempts()
    attempts.before(ROUND)
    for _ in range(20):
        attempt(attempts, {"a": "later", "b": "later", "c": "later"})
        assert attempts.before(ROUND) == LATER_S
