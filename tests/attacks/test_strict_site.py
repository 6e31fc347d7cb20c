"""A site with stricter rules than its run, alone among sites that have none.

Once a device has sent its masked input the others can open it without it: they hold the shares of its self mask, and a
threshold of them is enough. So a rule that its device held to only when it was asked to reveal protected nobody: six of
seven devices opened a block that the seventh had refused to open, and devices that a coordinator had made up opened
everything. What a site demands must be in the signed terms, to which all devices hold, or nothing leaves.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import DevicePolicy, DeviceSession, Participant, Reason, Refusal, RoundSpec, Summed, SummedBlock
from fedpeft.testing.secagg import Op, Round
from fedpeft.testing.secagg_fleet import Fleet, make_fleet, make_spec

ALL, FEW = BlockId("all"), BlockId("few")
STRICT = ParticipantId(1)
N = 7
EVERYBODY = tuple(map(ParticipantId, range(1, N + 1)))
OWNERS_OF_FEW = EVERYBODY[:3]
BLOCKS = [SummedBlock(block_id=name, ranges=(SumRange(length=N, max_abs=1.0, exact=True),)) for name in (ALL, FEW)]
OWNS = {member: frozenset([ALL, FEW] if member in OWNERS_OF_FEW else [ALL]) for member in EVERYBODY}


class Strangers:
    """A directory that takes every roster, and has never met this many of its devices."""

    def __init__(self, unconfirmed: int) -> None:
        self.unconfirmed = unconfirmed

    def admit(self, roster: Sequence[Participant]) -> int | str:
        """See ``Directory``."""
        return self.unconfirmed


def one_strict(fleet: Fleet, unconfirmed: int = 0, **policy: object) -> Fleet:
    rules: DevicePolicy = replace(fleet.policy, **policy)  # type: ignore[arg-type]
    fleet.sessions[STRICT] = DeviceSession(
        ledger=fleet.ledgers[STRICT],
        identity=fleet.identities[STRICT - 1],
        enrolled=fleet.enrolled(STRICT),
        policy=rules,
        directory=Strangers(unconfirmed),
    )
    return fleet


def summed_with(fleet: Fleet, spec: RoundSpec, ops: Sequence[Op] = ()) -> dict[BlockId, bool]:
    """Of each opened block whether the strict device's input is in the sum."""
    outcome = Round(fleet=fleet, spec=spec, owns=OWNS, ops=ops).run()
    assert isinstance(outcome, Summed), outcome
    return {name: bool(summed.values[STRICT - 1]) for name, summed in outcome.sums.items()}


@pytest.mark.parametrize(
    ("policy", "unconfirmed", "terms"),
    [
        ({"min_cohort": 5}, 0, {"min_cohort": 5}),
        ({"min_colluders": 2}, 0, {"corrupt_fraction": 0.28}),
        ({}, 2, {"corrupt_fraction": 0.28}),
        ({"min_colluders": 2}, 2, {"corrupt_fraction": 0.28}),
    ],
    ids=["cohort", "colluders", "strangers", "both"],
)
def test_nothing_of_a_strict_site_is_opened_on_terms_that_the_others_hold_to_and_it_would_not(
    policy: dict[str, object], unconfirmed: int, terms: dict[str, object]
) -> None:
    fleet = one_strict(make_fleet(N), unconfirmed, **policy)
    assert not any(summed_with(fleet, make_spec(fleet, BLOCKS)).values())
    fleet = one_strict(make_fleet(N), unconfirmed, **policy)
    opened = summed_with(fleet, make_spec(fleet, BLOCKS, **terms))
    assert opened.pop(ALL), "terms that are strict enough are taken"
    assert not opened, "and hold for everybody"


def test_a_strict_site_leaves_before_it_deals_when_fewer_devices_than_were_asked_mean_fewer_colluders() -> None:
    """11 devices are taken to have 2 colluders, 10 of them one: the coordinator says who is there."""
    fleet = one_strict(make_fleet(11), min_colluders=2)
    spec = make_spec(fleet, corrupt_fraction=0.1)
    gone = ParticipantId(11)
    a = Round(fleet=fleet, spec=spec, ops=[Op(kind="drop", stage="fit", member=gone)])
    state = a.reach("share")
    reply = a.ask(STRICT, state.requests[STRICT])
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.POLICY
    whole = Round(fleet=one_strict(make_fleet(11), min_colluders=2), spec=spec)
    outcome = whole.run()
    assert isinstance(outcome, Summed)
    assert len(outcome.survivors) == 11
