"""What a device knows of a run's past, what it refuses, and what it says when it lacks links."""

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest

from fedpeft import secagg
from fedpeft.config.model import Aggregate
from fedpeft.errors import SpecMismatch
from fedpeft.ids import NodeId
from fedpeft.round.device.records import SeenLinks, run_key
from fedpeft.round.history import BURNT, LARGEST_LINK, Past, genesis, linked, read_history
from fedpeft.round.linking import burnt_link
from fedpeft.round.messages import Failure, FailureReason, FitRequest, History, Link, Ready
from fedpeft.round.run_memory import LINKS_KEPT, earlier_heads, fork_seen, known_links
from fedpeft.round.task import RoundTask
from fedpeft.round.transport import Stage
from fedpeft.round.work import plan_digest, state_digest
from fedpeft.secagg.offer import open_terms
from fedpeft.testing.fleet import (
    CLIENT_PRIVACY,
    DictStore,
    ToyFleet,
    enrol,
    exact_terms,
    fit_request,
    toy_noise,
    toy_past,
    toy_task,
)
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import WireError, decode, encode

SPEC = toy_spec({"head": 4, "bitfit": 5})
STATE = toy_state(SPEC)
STATED = toy_plan(SPEC, secagg=exact_terms(4))
PLAN = STATED.model_copy(update={"aggregate": Aggregate(weight="uniform", a_round_every=2)})
"""Of a rule whose states travel: what follows from sums is tests/attacks/test_wrong_state.py."""
NODE = NodeId(1000)
LEFT = state_digest(STATE.digests)


@pytest.fixture
def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)})


def request_of(fleet: ToyFleet, past: Past, *, after: int = 0, attempt: int = 1, **changes: object) -> FitRequest:
    """For the round after this past; the links after ``after`` come with it."""
    task = toy_task(PLAN, round_id=len(past.links) + 1, attempt=attempt, past=past)
    changes = {"history": encode(past.since(after))} | changes
    return fit_request(fleet, PLAN, STATE, task=task, **changes)  # type: ignore[arg-type]


def answer(fleet: ToyFleet, request: FitRequest) -> Ready | Failure:
    reply = decode(fleet.devices[NODE].handle(Stage.FIT, encode(request)), (Ready, Failure))
    assert isinstance(reply, Ready | Failure)
    return reply


def refused(fleet: ToyFleet, request: FitRequest) -> str:
    """The reason in the device's own log."""
    told: list[str] = []
    fleet.devices[NODE]._tell = lambda trouble: told.append(trouble.cause)
    reply = answer(fleet, request)
    assert reply == Failure(reason=FailureReason.REFUSED), reply
    return " ".join(told)


def burnt(rounds: int) -> Past:
    return toy_past(PLAN, STATE, rounds=rounds)


def retold(past: Past, links: Sequence[Link]) -> Past:
    """Another past of the same run, with digests that fit."""
    start = genesis(PLAN.run_id, plan_digest(PLAN.to_json()), past.first, enrol_key())
    told = Past(first=past.first, head=start)
    for link in links:
        told = told.then(link)
    return told


def enrol_key() -> bytes:
    return enrol({"d0": GivenTrainer(SPEC, {})}).coordinator.public


def test_every_field_of_a_link_changes_the_digest_of_the_history() -> None:
    link = burnt(1).links[0]
    for field in fields(Link):
        value = getattr(link, field.name)
        changed = value + (b"\1" if isinstance(value, bytes) else 1)
        assert linked(bytes(32), replace(link, **{field.name: changed})) != linked(bytes(32), link)


def test_the_history_begins_with_run_plan_first_state_and_coordinator() -> None:
    parts = ("run", b"p" * 32, b"f" * 32, b"c" * 32)
    for place, other in enumerate(("Run", b"P" * 32, b"F" * 32, b"C" * 32)):
        changed = [other if index == place else part for index, part in enumerate(parts)]
        assert genesis(*changed) != genesis(*parts)  # type: ignore[arg-type]


def test_a_device_follows_a_run_link_by_link(fleet: ToyFleet) -> None:
    for done in range(5):
        assert isinstance(answer(fleet, request_of(fleet, burnt(done), after=max(0, done - 1))), Ready)
        fleet.restart(NODE)


@pytest.mark.parametrize(
    "told",
    [
        [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)],  # (rounds that are over, links after which), one by one
        [(4, 0)],  # all at once
        [(1, 0), (4, 1)],  # after a gap
        [(2, 0), (4, 0), (4, 0)],  # from the beginning again
        [(0, 0), (0, 0), (3, 0), (4, 2)],
    ],
)
def test_a_device_remembers_every_past_that_it_was_led_through_once(
    fleet: ToyFleet, told: list[tuple[int, int]]
) -> None:
    """What it kept of any round of this run it finds again by the digest of that round's past, and by no other."""
    assert earlier_heads(fleet.stores["d0"], PLAN.run_id) == frozenset()
    for attempt, (done, after) in enumerate(told, 1):
        assert isinstance(answer(fleet, request_of(fleet, burnt(done), after=after, attempt=attempt)), Ready)
        fleet.restart(NODE)
    assert earlier_heads(fleet.stores["d0"], PLAN.run_id) == {burnt(done).head for done in range(5)}
    seen = decode(fleet.stores["d0"].values[run_key(PLAN.run_id, "links")], SeenLinks)
    assert len(seen.heads) == 5 * 32, "each of them once"
    assert seen.links == burnt(4).links


def test_a_device_asks_for_links_from_where_its_own_memory_ends(fleet: ToyFleet) -> None:
    """Not from where its ledger's ends alone: that knows a digest, and no link."""
    store, ledger = fleet.stores["d0"], fleet.ledgers["d0"]
    assert known_links(store, PLAN.run_id, None) == 0
    assert isinstance(answer(fleet, request_of(fleet, burnt(3))), Ready)
    mark = ledger.mark(PLAN.run_id)
    assert mark is not None
    assert known_links(store, PLAN.run_id, mark) == 3
    assert known_links(store, PLAN.run_id, None) == 0
    assert known_links(store, "another", mark) == 0
    assert known_links(DictStore(), PLAN.run_id, mark) == 0
    assert known_links(store, PLAN.run_id, replace(mark, history=b"")) == 0


def test_a_burnt_round_leaves_a_link_without_a_number_of_a_sum() -> None:
    task = toy_task(PLAN, round_id=2, attempt=3, state=STATE)
    assert burnt_link(task, state=LEFT, devices=5, population=7) == Link(
        round_id=2, attempt=3, state=LEFT, outcome=BURNT, sums=BURNT, devices=5, population=7,
        survivors=b"", weight=0, owners=b"", weights=b"", clip=0.0,
    )  # fmt: skip
    noised = replace(task, noise=toy_noise(PLAN.model_copy(update={"client_privacy": CLIENT_PRIVACY}), devices=5))
    assert burnt_link(noised, state=LEFT, devices=5, population=7).clip == 1.0


def test_a_late_joiner_takes_the_links_from_the_beginning_and_from_nowhere_else(fleet: ToyFleet) -> None:
    past = burnt(6)
    lacking = answer(fleet, request_of(fleet, past, after=5))
    assert lacking == Failure(reason=FailureReason.MISSING_HISTORY, after=0)
    assert isinstance(answer(fleet, request_of(fleet, past)), Ready)


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_late_joiner_checks_the_chain(fleet: ToyFleet, place: int) -> None:
    past = burnt(6)
    links = list(past.links)
    links[place] = replace(links[place], population=4)
    history = History(first=past.first, links=tuple(links))
    assert "one history" in refused(fleet, request_of(fleet, past, history=encode(history)))
    assert fork_seen(fleet.stores["d0"], PLAN.run_id) is not None
    assert isinstance(answer(fleet, request_of(fleet, past)), Ready), "nothing of the lie was taken for the run's past"


def test_a_device_that_missed_rounds_says_from_where_on(fleet: ToyFleet) -> None:
    assert isinstance(answer(fleet, request_of(fleet, burnt(2))), Ready)
    lacking = answer(fleet, request_of(fleet, burnt(7), after=6))
    assert lacking == Failure(reason=FailureReason.MISSING_HISTORY, after=2)
    assert isinstance(answer(fleet, request_of(fleet, burnt(7), after=2)), Ready)


def test_a_fork_is_refused_and_both_sides_are_kept_for_the_site(fleet: ToyFleet) -> None:
    past = burnt(3)
    assert isinstance(answer(fleet, request_of(fleet, past)), Ready)
    other = retold(past, [replace(past.links[0], devices=9), *past.links[1:]])
    longer = other.then(replace(past.links[-1], round_id=4))
    for lie in (request_of(fleet, longer), request_of(fleet, longer, after=3), request_of(fleet, other, attempt=2)):
        assert "one history" in refused(fleet, lie)
        fleet.restart(NODE)
    kept = fork_seen(fleet.stores["d0"], PLAN.run_id)
    assert kept is not None
    assert kept.own.links == past.links
    assert kept.theirs == longer.links
    ours, theirs = (open_terms(decode(offer, secagg.RoundOffer).spec) for offer in (kept.own.offer, kept.offer))
    assert (ours.history, theirs.history) == (past.head, longer.head), "the coordinator's signature is over both"
    assert isinstance(answer(fleet, request_of(fleet, burnt(4), after=3)), Ready), "the true run goes on"


def test_an_older_past_is_no_way_around_what_is_known(fleet: ToyFleet) -> None:
    """A new first state, at round 1 or with all links from there."""
    assert isinstance(answer(fleet, request_of(fleet, burnt(1))), Ready)
    begun = Past.begun(PLAN, bytes(32), fleet.coordinator.public)
    invented = begun.then(replace(burnt(1).links[0], state=LEFT, outcome=b"\1" * 32))
    invented = invented.then(replace(burnt(2).links[1]))
    assert "begin with the state" in refused(fleet, request_of(fleet, invented))


def test_a_history_that_ends_in_another_state_is_refused(fleet: ToyFleet) -> None:
    past = toy_past(PLAN, STATE, rounds=2, left=b"\2" * 32)
    assert "history ends" in refused(fleet, request_of(fleet, past))
    with_first = Past.begun(PLAN, b"\3" * 32, fleet.coordinator.public)
    fleet.restart(NODE, wiped=True)
    assert "history ends" in refused(fleet, request_of(fleet, with_first))


def test_a_burnt_round_that_changed_the_state_is_refused(fleet: ToyFleet) -> None:
    honest = toy_past(PLAN, STATE, rounds=2).links
    past = retold(burnt(2), [replace(honest[0], state=b"\2" * 32), honest[1]])
    assert "burnt round 1" in refused(fleet, request_of(fleet, past))


@pytest.mark.parametrize("seen_first", [False, True])
def test_the_survivors_of_a_round_are_those_that_the_device_signed_or_none(fleet: ToyFleet, seen_first: bool) -> None:
    assert isinstance(answer(fleet, request_of(fleet, burnt(0))), Ready)
    mark = fleet.ledgers["d0"].mark(PLAN.run_id)
    assert mark is not None
    fleet.ledgers["d0"]._marks[PLAN.run_id] = replace(mark, agreed=True, signed=b"\7" * 32)
    fleet.restart(NODE)
    empty = burnt(1).links[0]
    for outcome, taken in ((b"\1" * 32, False), (b"\7" * 32 if seen_first else BURNT, True)):
        past = retold(burnt(1), [replace(empty, outcome=outcome)])
        if taken:
            assert isinstance(answer(fleet, request_of(fleet, past)), Ready)
        else:
            assert "signed" in refused(fleet, request_of(fleet, past))


def test_a_history_longer_than_its_rounds_is_refused_before_it_is_read(fleet: ToyFleet) -> None:
    cases = {
        "bytes of history": b"\0" * (LARGEST_LINK + 1024),
        "links of the rounds before": encode(burnt(5).since(0)),
        "digests of 32 bytes": encode(History(first=b"short", links=())),
    }
    for told, history in cases.items():
        assert told in refused(fleet, request_of(fleet, burnt(1), history=history))
    skipping = History(first=LEFT, links=(burnt(3).links[0], burnt(3).links[2]))
    assert "links of the rounds" in refused(fleet, request_of(fleet, burnt(3), history=encode(skipping)))
    with pytest.raises(WireError):
        read_history(b"\0" * 50, 9)


def test_a_round_after_the_last_one_is_refused_whatever_its_links(fleet: ToyFleet) -> None:
    assert "Expected a round of 1.." in refused(fleet, request_of(fleet, burnt(PLAN.rounds.count + 1)))


def test_a_thousand_missed_rounds_cost_a_third_of_a_megabyte_once() -> None:
    """With 20 summed blocks a round; under rules that need the weights of owners half a megabyte."""
    link = replace(burnt(1).links[0], outcome=b"\1" * 32, owners=bytes(4 * 20), survivors=bytes(4))
    past = Past.begun(PLAN, LEFT, bytes(32))
    for number in range(1, 1001):
        past = past.then(replace(link, round_id=number))
    assert len(encode(past.since(0))) <= 330_000
    weighed = len(encode(replace(link, weights=bytes(8 * 20)))) - len(encode(link))
    assert weighed == 160


def test_what_a_device_keeps_of_a_long_run_is_bounded(fleet: ToyFleet) -> None:
    plan = PLAN.model_copy(update={"rounds": PLAN.rounds.model_copy(update={"count": 2000})})
    past = toy_past(plan, STATE, rounds=LINKS_KEPT + 50)
    task = toy_task(plan, round_id=LINKS_KEPT + 51, past=past)
    assert isinstance(answer(fleet, fit_request(fleet, plan, STATE, task=task)), Ready)
    assert max(map(len, fleet.stores["d0"].values.values())) < 300 * LINKS_KEPT


class Killed(BaseException):
    """Nothing of ours catches it."""


class Dying(DictStore):
    """Dies at one of its writes: before it, or right after."""

    def __init__(self, values: dict[str, bytes], *, at: int, before: bool) -> None:
        super().__init__()
        self.values, self._left, self._before = values, at, before

    def write(self, key: str, value: bytes) -> None:
        self._left -= 1
        if self._left == 0 and self._before:
            raise Killed
        super().write(key, value)
        if self._left == 0:
            raise Killed


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("write", range(1, 9))
def test_killed_at_any_write_a_device_goes_on_with_the_run(write: int, before: bool) -> None:
    """Another attempt, or the next round, is taken; and a fork is still refused."""
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)})
    assert isinstance(answer(fleet, request_of(fleet, burnt(1))), Ready)
    fleet.stores["d0"] = Dying(fleet.stores["d0"].values, at=write, before=before)
    fleet.restart(NODE)
    try:
        assert isinstance(answer(fleet, request_of(fleet, burnt(2), after=1)), Ready)
    except Killed:
        fleet.stores["d0"] = Dying(fleet.stores["d0"].values, at=0, before=False)
        fleet.restart(NODE)
        assert isinstance(answer(fleet, request_of(fleet, burnt(2), after=1, attempt=2)), Ready)
    fleet.stores["d0"] = Dying(fleet.stores["d0"].values, at=0, before=False)
    fleet.restart(NODE)
    other = retold(burnt(3), [replace(burnt(1).links[0], devices=9), *burnt(3).links[1:]])
    assert "one history" in refused(fleet, request_of(fleet, other))
    assert isinstance(answer(fleet, request_of(fleet, burnt(3), after=2)), Ready)


def test_a_device_whose_memory_was_put_back_takes_the_links_from_there(fleet: ToyFleet) -> None:
    """Store alone, as a backup of a home without its ledger has it: the mark still knows better."""
    assert isinstance(answer(fleet, request_of(fleet, burnt(1))), Ready)
    older = dict(fleet.stores["d0"].values)
    for done in (2, 3):
        assert isinstance(answer(fleet, request_of(fleet, burnt(done), after=done - 1)), Ready)
    fleet.stores["d0"].values = older
    fleet.restart(NODE)
    assert isinstance(answer(fleet, request_of(fleet, burnt(4), after=3)), Ready)
    fleet.stores["d0"].values.clear()
    fleet.restart(NODE)
    lacking = answer(fleet, request_of(fleet, burnt(5), after=4))
    assert lacking == Failure(reason=FailureReason.MISSING_HISTORY, after=0)
    assert isinstance(answer(fleet, request_of(fleet, burnt(5))), Ready)


def test_a_peer_of_another_version_is_refused_and_told_to_update_in_the_log(fleet: ToyFleet) -> None:
    told: list[str] = []
    fleet.devices[NODE]._tell = lambda trouble: told.append(trouble.cause)
    old = bytearray(encode(request_of(fleet, burnt(0))))
    old[2] = 1
    assert decode(fleet.devices[NODE].handle(Stage.FIT, bytes(old)), Failure).reason is FailureReason.REFUSED
    assert "update" in told[0]


def test_a_task_needs_a_past() -> None:
    assert "past" in {field.name for field in fields(RoundTask)}


def test_another_attempt_at_a_round_has_the_past_that_the_device_knows(fleet: ToyFleet) -> None:
    """The last round's link is the only one that differs, and no later one is there to show it."""
    assert isinstance(answer(fleet, request_of(fleet, burnt(2))), Ready)
    other = retold(burnt(2), [burnt(2).links[0], replace(burnt(2).links[1], outcome=b"\1" * 32)])
    assert "one history" in refused(fleet, request_of(fleet, other, attempt=2))
    assert isinstance(answer(fleet, request_of(fleet, burnt(2), attempt=2)), Ready)


def test_no_round_comes_before_the_first() -> None:
    links = (replace(burnt(1).links[0], round_id=0), burnt(1).links[0])
    with pytest.raises(SpecMismatch, match="links of the rounds"):
        read_history(encode(History(first=LEFT, links=links)), 2)


def test_a_link_may_take_64_kib_and_a_history_without_links_128_bytes() -> None:
    """docs/protocol.md, "Limits": a peer with smaller bounds would refuse runs of thousands of blocks."""
    wide = replace(burnt(1).links[0], outcome=b"\1" * 32, devices=4, population=4, owners=bytes(60_000))
    assert read_history(encode(History(first=LEFT, links=(wide,))), 2).links == (wide,)
    with pytest.raises(SpecMismatch, match="65664 bytes"):
        read_history(bytes(65_665), 2)
    with pytest.raises(WireError):
        read_history(bytes(128), 1)
    with pytest.raises(SpecMismatch, match="128 bytes"):
        read_history(bytes(129), 1)


SUMMED = Link(
    round_id=1,
    attempt=1,
    state=LEFT,
    outcome=b"\1" * 32,
    sums=b"\2" * 32,
    devices=4,
    population=4,
    survivors=b"\0\0\0\4",
    weight=4,
    owners=b"\0\0\0\4",
    weights=bytes(8),
    clip=0.0,
)
IMPOSSIBLE = [
    *({"attempt": number} for number in (0, 2**32, 2**64 - 1)),
    *({"devices": number} for number in (0, 2**20 + 1, 2**64 - 1)),
    *({"population": number} for number in (0, 2**32, 2**64 - 1)),
    {"clip": -1.0},
    *({name: bytes(7)} for name in ("survivors", "owners", "weights")),
]
OF_BURNT = [{"sums": b"\2" * 32}, {"weight": 1}, *({name: bytes(8)} for name in ("survivors", "owners", "weights"))]


@pytest.mark.parametrize("lie", [*IMPOSSIBLE, {}], ids=str)
def test_numbers_that_no_round_has_are_refused_whatever_the_rule(lie: dict[str, object]) -> None:
    """Also where devices compute no state from a link, and nothing else reads its numbers."""
    payload = encode(History(first=LEFT, links=(replace(SUMMED, **lie),)))  # type: ignore[arg-type]
    if not lie:
        assert read_history(payload, 2).links == (SUMMED,)
        return
    with pytest.raises(SpecMismatch, match=next(iter(lie))):
        read_history(payload, 2)


@pytest.mark.parametrize("lie", OF_BURNT, ids=str)
def test_a_burnt_round_has_no_numbers_of_a_sum(lie: dict[str, object]) -> None:
    link = burnt(1).links[0]
    assert read_history(encode(History(first=LEFT, links=(link,))), 2).links == (link,)
    with pytest.raises(SpecMismatch, match=next(iter(lie))):
        read_history(encode(History(first=LEFT, links=(replace(link, **lie),))), 2)  # type: ignore[arg-type]
