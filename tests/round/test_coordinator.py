"""One round from the coordinator's side, over a network that fails.

Failures: each device silent, late, refusing or wrong in each exchange; requests and replies repeated, corrupted,
reordered; all of them at once. Not failures: order of arrival, a repeated message. With one-hot deltas a 2 in the sum
is a replay and a 0 is a loss. Known nondeterminism: none.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft import secagg
from fedpeft.config.model import Rounds
from fedpeft.config.task import Task
from fedpeft.ids import BlockId, NodeId, ParticipantId
from fedpeft.round.coordinator import resume_round, run_round
from fedpeft.round.events import Event, EventKind
from fedpeft.round.messages import Failure, FailureReason, FitRequest, Ready
from fedpeft.round.metrics import METRICS, TASK_METRICS, TRAIN_LOSS, measured_in
from fedpeft.round.pending import Note, PendingRound, StageClosed
from fedpeft.round.task import Member, RoundOutcome, RoundTask
from fedpeft.round.transport import Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_past, toy_task
from fedpeft.testing.network import Fault, FaultyTransport, InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

TASK = Task(kind="classify", labels=("no", "yes"))

N = 6
SPEC = toy_spec({"head": N})
HEAD = BlockId("head")
STATE = toy_state(SPEC)
NODES = [NodeId(1000 + place) for place in range(N)]
TRAINING = [Stage.FIT, Stage.SHARE, Stage.MASK, Stage.CONSIST, Stage.REVEAL]


def fleet_of(count: int = N) -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(count)})


class Attempt:
    """A fleet, its transport and its members; ``run`` may be called for one round after another."""

    def __init__(self, faults: Sequence[Fault] = (), *, fleet: ToyFleet | None = None, **terms: object) -> None:
        self.fleet = fleet or fleet_of()
        self.target_cohort: int | None = None
        self.clock = FakeClock()
        self.transport = FaultyTransport(self.fleet.handles, self.clock, faults)
        self.members: list[Member] = self.fleet.members()
        self.events: list[Event] = []
        self.plan = toy_plan(SPEC, secagg=exact_terms(len(self.members), **terms))  # type: ignore[arg-type]

    def task(self, **asked: object) -> RoundTask:
        key = self.fleet.coordinator.public
        number = self.plan.rounds.count + 1 if not asked["train"] else asked["round_id"]
        past = toy_past(self.plan, STATE, rounds=int(str(number)) - 1, coordinator=key)
        return toy_task(self.plan, past=past, **asked)  # type: ignore[arg-type]

    def run(self, *, round_id: int = 1, attempt: int = 1, train: bool = True) -> RoundOutcome:
        return run_round(
            replace(self.task(round_id=round_id, attempt=attempt, train=train), target_cohort=self.target_cohort),
            STATE,
            self.members,
            self.transport,
            rounds=Rounds(fit_deadline_s=100.0, stage_deadline_s=10.0),
            identity=self.fleet.coordinator,
            entropy=self.fleet.entropy,
            observe=self.events.append,
        )

    def failures(self) -> dict[str, str]:
        return {event.device: event.detail for event in self.events if event.kind is EventKind.FAILED}


def summed(outcome: RoundOutcome) -> secagg.Summed:
    assert isinstance(outcome.result, secagg.Summed), outcome.result
    return outcome.result


def aborted(outcome: RoundOutcome) -> secagg.Aborted:
    assert isinstance(outcome.result, secagg.Aborted), "the round gave a sum"
    return outcome.result


def head_sum(outcome: RoundOutcome) -> list[float]:
    return list(summed(outcome).sums[HEAD].values)


def without(*places: int) -> list[float]:
    return [0.0 if place in places else 1.0 for place in range(N)]


@pytest.mark.parametrize(("mode", "stages"), [("full", TRAINING), ("fast", [*TRAINING[:3], Stage.REVEAL])])
def test_a_round_sums_every_delta_exactly_once(mode: str, stages: list[Stage]) -> None:
    attempt = Attempt(mode=mode)
    outcome = attempt.run()
    assert head_sum(outcome) == without()
    assert summed(outcome).survivors == frozenset(range(1, N + 1))
    assert attempt.transport.asked == [(stage, tuple(NODES)) for stage in stages]
    assert attempt.failures() == {}


def measured(result: secagg.Summed, *, trained: bool = True) -> tuple[int, float | None, float | None, float | None]:
    """The means of devices that all weigh alike."""
    sums = {block: result.sums[block].values for block in (METRICS, TRAIN_LOSS) if block in result.sums}
    weights = {block: float(result.sums[block].owners) for block in sums}
    found = measured_in(sums, weights, evaluators=result.sums[METRICS].owners, trained=trained, task=TASK)
    return found.evaluators, found.loss, found.accuracy, found.train_loss


def test_the_metrics_of_a_round_are_the_cohorts_means() -> None:
    fleet = enrol(
        {f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}, measured=(1.5 * i, i, 2 * i)) for i in range(N)}
    )
    assert measured(summed(Attempt(fleet=fleet).run())) == (N - 1, 0.75, 0.5, 2.0), "d0 has nothing to evaluate on"


@pytest.mark.parametrize("train", [True, False])
def test_the_lanes_of_a_tasks_measure_are_the_cohorts_means(train: bool) -> None:
    """A confusion matrix of two classes, in multiples of 1 / 1024, so that no rounding comes between."""
    own = [np.array([i, 2 * i, 3 * i, 1024 - 6 * i]) / 1024 for i in range(N)]
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}, lanes=own[i]) for i in range(N)})
    opened = summed(Attempt(fleet=fleet).run(train=train)).sums[TASK_METRICS]
    np.testing.assert_allclose(opened.values, np.sum(own, axis=0), atol=1e-6)
    found = measured_in({TASK_METRICS: opened.values}, {TASK_METRICS: N}, evaluators=N, trained=train, task=TASK)
    assert found.metrics["f1/yes"] == pytest.approx(2 * 6054 / (2 * 6054 + 75), abs=1e-6)


def test_an_evaluation_sums_the_metrics_alone() -> None:
    result = summed(Attempt().run(train=False))
    assert list(result.sums) == [METRICS, TASK_METRICS, TRAIN_LOSS]
    assert result.sums[TRAIN_LOSS].values.tolist() == [0.0]
    assert measured(result, trained=False) == (N, 0.75, 0.5, None)


@pytest.mark.parametrize("stage", [Stage.FIT, Stage.SHARE, Stage.MASK])
@pytest.mark.parametrize("kind", ["lose-request", "lose-reply", "delay"])
def test_a_device_silent_before_the_sum_is_left_out_of_it(stage: Stage, kind: str) -> None:
    attempt = Attempt([Fault(kind=kind, stage=stage, node=NODES[2])])  # type: ignore[arg-type]
    outcome = attempt.run()
    assert head_sum(outcome) == without(2)
    assert summed(outcome).survivors == frozenset({1, 2, 4, 5, 6})
    assert outcome.traffic["d2"].ready is (stage is not Stage.FIT)
    assert outcome.traffic["d2"].failure == f"no answer within {100 if stage is Stage.FIT else 10} s"
    assert attempt.failures() == {"d2": outcome.traffic["d2"].failure}
    later = [nodes for asked, nodes in attempt.transport.asked if TRAINING.index(asked) > TRAINING.index(stage)]
    assert later
    assert all(NODES[2] not in nodes for nodes in later), "a device that was given up is not asked again"


@pytest.mark.parametrize("stage", [Stage.CONSIST, Stage.REVEAL])
@pytest.mark.parametrize("kind", ["lose-request", "lose-reply", "delay"])
def test_a_device_silent_after_its_input_arrived_is_still_in_the_sum(stage: Stage, kind: str) -> None:
    outcome = Attempt([Fault(kind=kind, stage=stage, node=NODES[2])]).run()  # type: ignore[arg-type]
    assert head_sum(outcome) == without()
    assert summed(outcome).survivors == frozenset(range(1, N + 1))


@pytest.mark.parametrize("stage", TRAINING)
@pytest.mark.parametrize("kind", ["repeat-request", "repeat-reply", "reverse"])
def test_repeated_and_reordered_messages_change_nothing(stage: Stage, kind: str) -> None:
    attempt = Attempt([Fault(kind=kind, stage=stage)])  # type: ignore[arg-type]
    assert head_sum(attempt.run()) == without()
    assert attempt.failures() == {}
    assert all(len(trainer.fitted) == 1 for trainer in attempt.fleet.trainers.values())


@pytest.mark.drawn(1, each=("stage", "kind"))
@pytest.mark.parametrize("stage", TRAINING)
@pytest.mark.parametrize("at", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["corrupt-request", "corrupt-reply"])
def test_a_corrupted_message_never_corrupts_the_sum(stage: Stage, at: float, kind: str) -> None:
    outcome = Attempt([Fault(kind=kind, stage=stage, node=NODES[2], at=at)]).run()  # type: ignore[arg-type]
    assert head_sum(outcome) in (without(), without(2))
    if stage in (Stage.FIT, Stage.SHARE, Stage.MASK) and kind == "corrupt-reply":
        assert head_sum(outcome) == without(2), "what was changed on its way is not believed"


@pytest.mark.parametrize("reason", [FailureReason.REFUSED, FailureReason.UNABLE])
def test_a_device_that_refuses_is_left_out_and_its_reason_is_kept(reason: FailureReason) -> None:
    attempt = Attempt()
    refusal = encode(Failure(reason=reason))
    attempt.transport.devices[NODES[4]] = lambda stage, payload: refusal
    outcome = attempt.run()
    assert head_sum(outcome) == without(4)
    assert outcome.traffic["d4"].failure == reason.value
    assert summed(outcome).rejected[ParticipantId(5)].detail == reason.value


@pytest.mark.parametrize("reply", [b"", b"nonsense", encode(Ready(advertise=b"")), encode(Ready(advertise=b"x" * 50))])
def test_a_device_that_answers_nonsense_is_left_out(reply: bytes) -> None:
    attempt = Attempt()
    attempt.transport.devices[NODES[0]] = lambda stage, payload: reply
    assert head_sum(attempt.run()) == without(0)
    assert set(attempt.failures()) == {"d0"}


def test_a_device_that_answers_with_anothers_reply_is_left_out() -> None:
    attempt = Attempt()
    attempt.transport.devices[NODES[3]] = attempt.transport.devices[NODES[1]]  # d1 speaks for d3
    outcome = attempt.run()
    assert head_sum(outcome) == without(3)


def test_a_device_that_lost_the_state_is_sent_all_of_it_once_more() -> None:
    attempt = Attempt()
    attempt.run()
    attempt.fleet.restart(NODES[1], wiped=True)
    outcome = attempt.run(round_id=2)
    assert head_sum(outcome) == without()
    assert attempt.transport.asked[5:7] == [(Stage.FIT, tuple(NODES)), (Stage.FIT, (NODES[1],))]
    whole = sum(4 * STATE[block_id].size for block_id in STATE)
    more = outcome.traffic["d1"].bytes_down - outcome.traffic["d0"].bytes_down
    assert more > whole, "two requests, the second with every block"
    assert outcome.traffic["d1"].failure == ""


def test_a_device_that_never_gets_the_state_right_is_asked_only_twice() -> None:
    attempt = Attempt()
    missing = encode(Failure(reason=FailureReason.MISSING_STATE))
    attempt.transport.devices[NODES[1]] = lambda stage, payload: missing
    outcome = attempt.run()
    assert head_sum(outcome) == without(1)
    assert [nodes for stage, nodes in attempt.transport.asked if stage is Stage.FIT] == [tuple(NODES), (NODES[1],)]
    assert outcome.traffic["d1"].failure == "missing-state"


def test_blocks_travel_once_while_they_do_not_change() -> None:
    attempt = Attempt()
    first, second = attempt.run(), attempt.run(round_id=2)
    whole = sum(4 * STATE[block_id].size for block_id in STATE)
    one, none = (encode(attempt.task(round_id=number, train=True).past.since(0)) for number in (2, 1))
    for name in attempt.fleet.trainers:
        saved = first.traffic[name].bytes_down - second.traffic[name].bytes_down + len(one) - len(none)
        assert saved >= whole


def rosters_sent(attempt: Attempt, round_id: int) -> dict[NodeId, list[bool]]:
    """Of each device whether each fit request of a round came to it with the roster."""
    sent: dict[NodeId, list[bool]] = {node: [] for node in NODES}
    devices = dict(attempt.transport.devices)

    def listening(node: NodeId):  # type: ignore[no-untyped-def]
        def handle(stage: Stage, payload: bytes) -> bytes:
            if stage is Stage.FIT:
                offer = decode(decode(payload, FitRequest).offer, secagg.RoundOffer)
                sent[node].append(bool(offer.roster))
            return devices[node](stage, payload)

        return handle

    attempt.transport.devices.update({node: listening(node) for node in NODES})
    assert head_sum(attempt.run(round_id=round_id)) == without()
    attempt.transport.devices.update(devices)
    return sent


def test_the_roster_travels_once_while_it_does_not_change() -> None:
    """Who has lost it, or is not thought to have it, is given it: a coordinator that was restarted gives it to all."""
    attempt = Attempt()
    everybody = lambda came: {node: [came] for node in NODES}  # noqa: E731
    assert rosters_sent(attempt, 1) == everybody(True)
    assert rosters_sent(attempt, 2) == everybody(False)
    attempt.members[2].known.roster = b""
    assert rosters_sent(attempt, 3) == {**everybody(False), NODES[2]: [True]}
    attempt.fleet.ledgers[attempt.fleet.names[NODES[1]]].dumped.clear()
    assert rosters_sent(attempt, 4) == {**everybody(False), NODES[1]: [False, True]}


def test_a_device_that_never_has_the_roster_is_asked_only_twice_and_tells_no_trouble() -> None:
    attempt = Attempt()
    missing = encode(Failure(reason=FailureReason.MISSING_ROSTER))
    attempt.transport.devices[NODES[1]] = lambda stage, payload: missing
    assert head_sum(attempt.run()) == without(1)
    assert [nodes for stage, nodes in attempt.transport.asked if stage is Stage.FIT] == [tuple(NODES), (NODES[1],)]
    lacked = [(event.stage, event.detail) for event in attempt.events if event.kind is EventKind.LACKED]
    assert lacked == [(Stage.FIT, "missing-roster")], "why a device is asked again can be read in events.jsonl"


def test_devices_that_need_the_same_are_sent_the_same_bytes() -> None:
    """Not equal ones: a state is as large as an update, and a round may ask thousands."""
    attempt = Attempt()
    sent: list[bytes] = []
    exchange = attempt.transport.exchange

    def kept(stage, requests, *, deadline_s):  # type: ignore[no-untyped-def]
        if stage is Stage.FIT:
            sent.extend(requests[node] for node in requests)
        return exchange(stage, requests, deadline_s=deadline_s)

    attempt.transport.exchange = kept  # type: ignore[method-assign]
    attempt.run()
    assert len(sent) == N
    assert len({id(payload) for payload in sent}) == 1
    sent.clear()
    attempt.members[0].held.clear()
    attempt.run(round_id=2)
    assert len({id(payload) for payload in sent}) == 2
    assert sent[0] != sent[1] == sent[2]


def test_a_device_whose_answer_was_lost_gets_the_state_again() -> None:
    attempt = Attempt([Fault(kind="lose-reply", stage=Stage.FIT, node=NODES[0])])
    attempt.run()
    assert attempt.members[0].held == {}
    assert attempt.members[1].held == STATE.digests


def not_needed(outcome: RoundOutcome) -> set[str]:
    return {name for name, account in outcome.traffic.items() if account.not_needed}


def test_the_first_to_be_ready_make_the_round_and_the_others_are_no_failures() -> None:
    attempt = Attempt()
    attempt.target_cohort = 4
    outcome = attempt.run()
    asked = {stage: len(nodes) for stage, nodes in attempt.transport.asked}
    assert asked == {Stage.FIT: N, **dict.fromkeys(TRAINING[1:], 4)}
    assert sorted(head_sum(outcome)) == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert len(not_needed(outcome)) == N - 4
    assert attempt.failures() == {}
    closed = [event.detail for event in attempt.events if event.kind is EventKind.STAGE_CLOSED]
    assert closed[0].startswith("4 of 6 are ready; not needed: ")


def test_spare_devices_take_the_place_of_those_that_are_lost_in_training() -> None:
    attempt = Attempt([Fault(kind="lose-reply", stage=Stage.FIT, node=node) for node in NODES[:2]])
    attempt.target_cohort = 4
    outcome = attempt.run()
    assert head_sum(outcome) == without(0, 1)
    assert attempt.failures() == {}, "nobody waited for them until the deadline"


def test_a_lost_device_after_the_roster_counts_against_the_rosters_threshold() -> None:
    attempt = Attempt([Fault(kind="lose-request", stage=Stage.MASK, node=node) for node in NODES])
    attempt.target_cohort = 4
    assert aborted(attempt.run()).restartable


def test_who_is_asked_first_changes_from_round_to_round() -> None:
    first = Attempt()
    first.target_cohort = 3
    assert len({tuple(sorted(not_needed(first.run(round_id=number)))) for number in range(1, 9)}) > 1


@pytest.mark.parametrize("stage", TRAINING)
def test_a_round_in_which_all_are_silent_is_aborted_with_a_reason(stage: Stage) -> None:
    attempt = Attempt([Fault(kind="lose-reply", stage=stage, times=2)])
    outcome = attempt.run()
    end = aborted(outcome)
    assert outcome.is_final == (stage in (Stage.CONSIST, Stage.REVEAL)), "no other attempt after the survivors are out"
    assert end.reason in (secagg.Reason.TOO_FEW_DEVICES, secagg.Reason.COHORT_TOO_SMALL, secagg.Reason.SECRET_LOST)
    assert end.detail
    assert set(attempt.failures()) == set(attempt.fleet.trainers)


@pytest.mark.parametrize("stage", [Stage.CONSIST, Stage.REVEAL])
def test_devices_that_know_the_survivors_are_asked_again_once(stage: Stage) -> None:
    attempt = Attempt([Fault(kind="lose-reply", stage=stage)])
    assert head_sum(attempt.run()) == without()
    assert [now for now, _ in attempt.transport.asked].count(stage) == 2


def test_a_round_in_which_all_refuse_is_aborted_and_no_later_exchange_takes_place() -> None:
    attempt = Attempt()
    refusal = encode(Failure(reason=FailureReason.REFUSED))
    for node in NODES:
        attempt.transport.devices[node] = lambda stage, payload: refusal
    assert aborted(attempt.run()).reason is secagg.Reason.TOO_FEW_DEVICES
    assert {stage for stage, _ in attempt.transport.asked} == {Stage.FIT}


def test_a_second_attempt_sums_the_same_deltas_without_training_again() -> None:
    attempt = Attempt([Fault(kind="lose-reply", stage=Stage.MASK, node=node) for node in NODES[:4]])
    aborted(attempt.run())
    assert head_sum(attempt.run(attempt=2)) == without()
    assert all(len(trainer.fitted) == 1 for trainer in attempt.fleet.trainers.values())


def test_a_device_that_restarts_between_two_exchanges_goes_on() -> None:
    attempt = Attempt()

    def restarting(stage: Stage, payload: bytes) -> bytes:
        attempt.fleet.restart(NODES[2])
        return attempt.fleet.handles[NODES[2]](stage, payload)

    attempt.transport.devices[NODES[2]] = restarting
    assert head_sum(attempt.run()) == without()
    assert len(attempt.fleet.trainers["d2"].fitted) == 1


def test_a_block_with_too_few_owners_is_skipped_and_the_rest_is_summed() -> None:
    spec = toy_spec({"head": N, "bitfit": 2})
    deltas = {i: {"head": one_hot(N, i)} | ({"bitfit": one_hot(2, 0)} if i < 2 else {}) for i in range(N)}
    fleet = enrol({f"d{i}": GivenTrainer(spec, deltas[i]) for i in range(N)})
    outcome = run_round(
        toy_task(toy_plan(spec, secagg=exact_terms(N)), state=toy_state(spec)),
        toy_state(spec),
        fleet.members(),
        InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
    )
    assert head_sum(outcome) == without()
    assert set(summed(outcome).skipped) == {"bitfit"}
    assert "bitfit" not in summed(outcome).sums


def test_traffic_counts_the_payloads_and_seconds_of_every_exchange() -> None:
    attempt = Attempt()
    outcome = attempt.run()
    answered = [event for event in attempt.events if event.kind is EventKind.ANSWERED]
    assert len(answered) == len(TRAINING) * N
    for name, account in outcome.traffic.items():
        own = [event for event in answered if event.device == name]
        assert account.bytes_up == sum(event.bytes_up for event in own) > 0
        assert account.bytes_down == sum(event.bytes_down for event in own) > 0
        assert account.seconds == len(TRAINING)


def test_a_silent_device_is_charged_for_what_it_was_sent() -> None:
    heard = Attempt().run()
    silent = Attempt([Fault(kind="lose-request", stage=Stage.FIT, node=NODES[0])]).run()
    assert 0 < silent.traffic["d0"].bytes_down < heard.traffic["d0"].bytes_down
    assert silent.traffic["d0"].bytes_up == 0


def test_every_exchange_is_announced_and_closed() -> None:
    attempt = Attempt([Fault(kind="lose-reply", stage=Stage.MASK, node=NODES[5])])
    attempt.run()
    closed = [(event.stage, event.detail) for event in attempt.events if event.kind is EventKind.STAGE_CLOSED]
    answers = [6, 6, 5, 5, 5]
    invited = [6, 6, 6, 5, 5]
    assert closed == [
        (stage, f"{heard} of {asked} answered") for stage, heard, asked in zip(TRAINING, answers, invited, strict=True)
    ]
    assert {event.round_id for event in attempt.events} == {1}


FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(
        ["lose-request", "lose-reply", "delay", "repeat-request", "repeat-reply", "corrupt-request", "corrupt-reply"]
    ),
    stage=st.sampled_from(TRAINING),
    node=st.sampled_from(NODES),
    at=st.floats(0, 0.999),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(faults=st.lists(FAULTS, max_size=5), mode=st.sampled_from(["full", "fast"]), twice=st.booleans())
def test_whatever_the_network_does_the_sum_is_exact_or_there_is_none(
    faults: list[Fault], mode: str, twice: bool
) -> None:
    attempt = Attempt(faults, mode=mode)
    outcomes = [attempt.run()]
    if twice and isinstance(outcomes[0].result, secagg.Aborted):
        outcomes.append(attempt.run(attempt=2))
    for outcome in outcomes:
        if isinstance(outcome.result, secagg.Summed):
            survivors = {place - 1 for place in outcome.result.survivors}
            assert head_sum(outcome) == without(*(set(range(N)) - survivors))
            assert outcome.result.sums[TRAIN_LOSS].members == outcome.result.survivors
        else:
            assert outcome.result.detail
    assert all(len(trainer.fitted) <= 1 for trainer in attempt.fleet.trainers.values())


def test_devices_of_two_organisations_give_no_sum() -> None:
    names = {f"d{i}": f"org{i % 2}" for i in range(N)}
    fleet = enrol({name: GivenTrainer(SPEC, {"head": one_hot(N, 0)}) for name in names}, organisations=names)
    assert aborted(Attempt(fleet=fleet).run()).reason is secagg.Reason.COHORT_TOO_SMALL


def test_the_values_of_a_sum_do_not_depend_on_the_order_of_the_members() -> None:
    rng = np.random.default_rng(0)
    deltas = {f"d{i}": rng.integers(-(2**20), 2**20, N).astype(np.float32) / 2**18 for i in range(N)}
    expected = sum(delta.astype(np.float64) for delta in deltas.values())
    for turn in range(3):
        attempt = Attempt(fleet=enrol({name: GivenTrainer(SPEC, {"head": delta}) for name, delta in deltas.items()}))
        attempt.members = attempt.members[turn:] + attempt.members[:turn]
        np.testing.assert_array_equal(summed(attempt.run()).sums[HEAD].values, expected)


def test_a_reply_with_nothing_in_it_counts_as_a_failure() -> None:
    attempt = Attempt()
    inner = attempt.transport

    class Silent(InMemoryTransport):
        def exchange(self, stage, requests, *, deadline_s):  # type: ignore[no-untyped-def]
            for reply in inner.exchange(stage, requests, deadline_s=deadline_s):
                yield replace(reply, payload=None, error="the app raised") if reply.node == NODES[0] else reply

    attempt.transport = Silent(attempt.fleet.handles, attempt.clock)  # type: ignore[assignment]
    outcome = attempt.run()
    assert head_sum(outcome) == without(0)
    assert outcome.traffic["d0"].failure == "the app raised"


def test_no_request_lies_in_memory_before_it_is_sent() -> None:
    attempt = Attempt()
    attempt.transport = InMemoryTransport(attempt.fleet.handles, attempt.clock)  # type: ignore[assignment]
    attempt.run()
    turns = [event.kind for event in attempt.events if event.kind in (EventKind.ASKED, EventKind.ANSWERED)]
    assert turns == [EventKind.ASKED, EventKind.ANSWERED] * (len(turns) // 2)
    assert len(turns) >= 2 * N


class Notebook:
    """A store whose notes a test reads."""

    def __init__(self) -> None:
        self.kept: list[PendingRound] = []
        self.notes: list[Note] = []

    def keep(self, pending: PendingRound) -> None:
        """See ``PendingStore``."""
        self.kept.append(pending)

    def note(self, note: Note) -> None:
        """See ``PendingStore``."""
        self.notes.append(note)


@pytest.mark.parametrize("crash_after", ["consist", "reveal"])
def test_a_coordinator_that_died_after_a_stage_has_its_end_in_its_notes(crash_after: str) -> None:
    """Without the end of CONSIST the replies to REVEAL would be given to the wrong stage, and nothing be opened."""
    attempt, notebook = Attempt(), Notebook()
    task = attempt.task(round_id=1, attempt=1, train=True)
    rounds = Rounds(fit_deadline_s=100.0, stage_deadline_s=10.0)
    first = run_round(
        task,
        STATE,
        attempt.members,
        attempt.transport,
        rounds=rounds,
        identity=attempt.fleet.coordinator,
        entropy=attempt.fleet.entropy,
        observe=lambda event: None,
        store=notebook,
    )
    ends = [note.stage for note in notebook.notes if isinstance(note, StageClosed)]
    assert ends == ["consist", "reveal"]
    place = notebook.notes.index(StageClosed(stage=crash_after))
    asked_before = len(attempt.transport.asked)
    again = resume_round(
        notebook.kept[0],
        notebook.notes[: place + 1],
        task,
        attempt.members,
        attempt.transport,
        rounds=rounds,
        observe=lambda event: None,
        store=Notebook(),
    )
    assert isinstance(first.result, secagg.Summed)
    assert isinstance(again.result, secagg.Summed)
    np.testing.assert_array_equal(again.result.sums[HEAD].values, first.result.sums[HEAD].values)
    asked = [stage for stage, _ in attempt.transport.asked[asked_before:]]
    assert asked == ([Stage.REVEAL] if crash_after == "consist" else []), "nothing is asked for twice"
