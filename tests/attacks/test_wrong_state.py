"""A coordinator that gives all devices alike a state that does not follow from the last round's sums.

An injected state is how a crafted adapter (imprints, heads that single out one label) gets onto devices after they have
agreed on an honest one. Devices that were in the round before make the next state themselves and take no other. Devices
and sums are the product's, the lies are the coordinator's alone.
"""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.aggregate import ServerState
from fedpeft.config.model import Adapter, Lora, Rounds
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.round.coordinator import run_round
from fedpeft.round.device.held import HELD, held_state
from fedpeft.round.device.last_runs import ASIDE
from fedpeft.round.device.records import HeldBlocks
from fedpeft.round.history import Past
from fedpeft.round.linking import link_of, summed_blocks, sums_digest
from fedpeft.round.messages import BlockDigest, BlockPayload
from fedpeft.round.plan import MAX_STATE, LearningPlan
from fedpeft.round.task import PublishedSums, RoundOutcome, RoundTask
from fedpeft.round.transition import next_state
from fedpeft.round.work import state_digest
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_past, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import FROZEN, GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode

N = 6
SPEC = toy_spec({"head": N})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(N))
HEAD = BlockId("head")
HONEST = STATE.replace({HEAD: (STATE[HEAD].astype(np.float64) + 1.0 / N).astype(np.float32)})
CRAFTED = STATE.replace({HEAD: np.full(N, 100.0, np.float32)})


@pytest.fixture
def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)})


class Run:
    """A run of real devices; its coordinator says what it likes about the state after round 1."""

    def __init__(self, fleet: ToyFleet, plan: LearningPlan = PLAN, state: AdapterState = STATE) -> None:
        self.fleet, self.plan, self.members, self.state = fleet, plan, fleet.members(), state
        self.begun = toy_past(plan, state, rounds=0)
        self.first = self.asked(self.begun, state, None)
        assert isinstance(self.first.result, secagg.Summed)
        self.summed = self.first.result

    def asked(self, past: Past, state: AdapterState, published: PublishedSums | None, attempt: int = 1) -> RoundOutcome:
        return run_round(
            replace(self.task(past, attempt), published=published),
            state,
            self.members,
            InMemoryTransport(self.fleet.handles, FakeClock()),
            rounds=Rounds(),
            identity=self.fleet.coordinator,
            entropy=self.fleet.entropy,
            observe=lambda event: None,
        )

    def task(self, past: Past, attempt: int) -> RoundTask:
        """Of the round after this past."""
        return toy_task(self.plan, round_id=len(past.links) + 1, attempt=attempt, past=past)

    def after(self, state: AdapterState, **changes: object) -> Past:
        """The past with a link of round 1 that ends in this state."""
        task, names = toy_task(self.plan, past=self.begun), self.first.participants
        link = link_of(task, names, self.summed, state=state_digest(state.digests), population=N)
        return self.begun.then(replace(link, **changes))  # type: ignore[arg-type]

    def sums(self) -> PublishedSums:
        return PublishedSums(
            before=tuple(BlockDigest(block_id=name, sha256=sha256) for name, sha256 in self.state.digests.items()),
            sums=tuple(
                BlockPayload(block_id=name, values=block.words) for name, block in summed_blocks(self.summed).items()
            ),
        )


def ready(outcome: RoundOutcome) -> list[str]:
    return [name for name, account in outcome.traffic.items() if account.ready]


def test_the_honest_state_is_made_by_every_device_itself(fleet: ToyFleet) -> None:
    run = Run(fleet)
    outcome = run.asked(run.after(HONEST), HONEST, run.sums())
    assert isinstance(outcome.result, secagg.Summed)
    assert len(ready(outcome)) == N


@pytest.mark.parametrize("shown", ["the true sums", "no sums", "sums without state"])
def test_an_injected_state_is_refused(fleet: ToyFleet, shown: str) -> None:
    run = Run(fleet)
    published = None if shown == "no sums" else run.sums()
    if shown == "sums without state" and published is not None:
        published = replace(published, sums=())
    outcome = run.asked(run.after(CRAFTED), CRAFTED, published)
    assert isinstance(outcome.result, secagg.Aborted)
    assert ready(outcome) == []
    for trainer in fleet.trainers.values():
        assert isinstance(trainer, GivenTrainer)
        assert len(trainer.fitted) == 1, "no example was touched for it"
    assert isinstance(run.asked(run.after(HONEST), HONEST, run.sums(), attempt=2).result, secagg.Summed)


def of_others(fleet: ToyFleet, count: int) -> None:
    """Each device trains in the first round of so many other runs."""
    for number in range(count):
        Run(fleet, PLAN.model_copy(update={"run_id": f"other-{number}"}))


def test_rounds_of_other_runs_in_between_make_no_device_forget_the_state_that_it_held(fleet: ToyFleet) -> None:
    run = Run(fleet)
    of_others(fleet, ASIDE)
    assert ready(run.asked(run.after(CRAFTED), CRAFTED, run.sums())) == []
    assert ready(run.asked(run.after(HONEST, weight=1), HONEST, run.sums(), attempt=2)) == [], "nor what it signed for"
    assert len(ready(run.asked(run.after(HONEST), HONEST, run.sums(), attempt=3))) == N


def test_a_device_holds_the_states_of_a_few_runs_and_no_more(fleet: ToyFleet) -> None:
    Run(fleet)
    of_others(fleet, ASIDE + 2)
    for store in fleet.stores.values():
        records = [decode(value, HeldBlocks) for key, value in store.values.items() if key.startswith("held")]
        assert sum(bool(record.blocks) for record in records) == ASIDE + 1
        assert held_state(store, PLAN.run_id) is None
        assert held_state(store, "other-0") is None
        for number in range(1, ASIDE + 2):
            found = held_state(store, f"other-{number}")
            assert found is not None
            assert found.blocks


def test_one_bit_of_a_state_is_enough_to_be_refused(fleet: ToyFleet) -> None:
    run = Run(fleet)
    nearly = HONEST.replace({HEAD: np.nextafter(HONEST[HEAD], np.float32(np.inf))})
    assert ready(run.asked(run.after(nearly), nearly, run.sums())) == []


@pytest.mark.parametrize("lie", [{"weight": 1}, {"owners": b"\0\0\0\1"}, {"devices": 3}, {"survivors": b"\0\0\0\3"}])
def test_a_step_that_is_made_longer_by_the_links_numbers_is_refused(fleet: ToyFleet, lie: dict[str, object]) -> None:
    """A weight of 1 would multiply the step by six, whatever the sum."""
    run = Run(fleet)
    longer = STATE.replace({HEAD: (STATE[HEAD].astype(np.float64) + 1.0).astype(np.float32)})
    assert ready(run.asked(run.after(longer, **lie), longer, run.sums())) == []


WEIGHED = toy_plan(SPEC, weight="examples", max_weight=128, secagg=exact_terms(N))


@pytest.mark.parametrize(
    "lie",
    [{"weight": 6 * 4}, {"weight": 6 * 128}, {"devices": 7}, {"owners": b"\0\0\0\5"}, {"attempt": 2}, {}],
    ids=str,
)
def test_a_links_numbers_are_those_of_the_roster_that_devices_signed_for(lie: dict[str, object]) -> None:
    """Each of them is possible; with half of the weight a step is twice as long."""
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}, examples=8) for i in range(N)})
    run = Run(fleet, WEIGHED)
    link = run.after(STATE).links[0]
    told = replace(link, **lie)  # type: ignore[arg-type]
    try:
        state, _ = next_state(WEIGHED, STATE, ServerState(), told, run.sums().sums, learning_rate_factor=1.0)
    except SpecMismatch:
        state = STATE  # the words make no sense with these numbers; the history is refused all the same
    outcome = run.asked(run.after(state, **lie), state, run.sums())
    assert len(ready(outcome)) == (0 if lie else N)


def test_invented_sums_move_the_state_no_further_than_all_inputs_together_could(fleet: ToyFleet) -> None:
    """What is not prevented: nobody but the coordinator sees a sum, so it can invent words, within the ring's range."""
    plan = toy_plan(SPEC, secagg=PLAN.secagg.model_copy(update={"max_abs": 0.25, "bits": 32}))
    run = Run(enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)}), plan)
    (true,) = run.sums().sums
    levels = 2 * N * ((2**32 - 1) // (2 * N))
    most = replace(true, values=np.full(N, levels, "<u4").tobytes())
    link = replace(run.after(STATE).links[0], sums=sums_digest({HEAD: most.values}))
    moved, _ = next_state(plan, STATE, ServerState(), link, (most,), learning_rate_factor=1.0)
    assert np.abs(moved[HEAD] - STATE[HEAD]).max() <= 0.25 * (1 + 1e-6)


MEASURED = BlockId("head")
TWO = toy_spec({"head": N, "lora.B.t4": N})
MEANS = toy_plan(TWO, secagg=exact_terms(N)).model_copy(
    update={"adapter": Adapter.having(Lora(rank=4), head_start="class-means", head_refresh=3)}
)


@pytest.mark.parametrize("optimizer", ["none", "momentum"])
@pytest.mark.parametrize("crafted", ["", "lora.B.t4", FROZEN])
def test_a_round_that_measures_the_head_is_no_chance_to_bring_in_a_crafted_adapter(
    crafted: str, optimizer: str
) -> None:
    """The head of a refresh does not repeat to the bit, so it is the coordinator's word; nothing else is."""
    trainers = {f"d{i}": GivenTrainer(TWO, {"head": one_hot(N, i), "lora.B.t4": one_hot(N, i)}) for i in range(N)}
    aggregate = MEANS.aggregate.model_copy(update={"server_optimizer": optimizer})
    run = Run(enrol(trainers), MEANS.model_copy(update={"aggregate": aggregate}), toy_state(TWO))
    head = run.state.replace({MEASURED: np.full(N, 5.0, np.float32)})
    told = head.replace({BlockId(crafted): np.full(head[BlockId(crafted)].size, 9.0, np.float32)}) if crafted else head
    outcome = run.asked(run.after(told), told, None)
    assert len(ready(outcome)) == (0 if crafted else N)


def test_moments_outlast_a_round_that_measures_the_head_so_that_the_next_step_can_be_followed() -> None:
    trainers = {f"d{i}": GivenTrainer(TWO, {"head": one_hot(N, i), "lora.B.t4": one_hot(N, i)}) for i in range(N)}
    fleet = enrol(trainers)
    run = Run(
        fleet,
        MEANS.model_copy(update={"aggregate": MEANS.aggregate.model_copy(update={"server_optimizer": "momentum"})}),
        toy_state(TWO),
    )
    head = run.state.replace({MEASURED: np.full(N, 5.0, np.float32)})
    assert len(ready(run.asked(run.after(head), head, None))) == N
    for store in fleet.stores.values():
        assert decode(store.values[HELD], HeldBlocks).server is not None


def test_a_plan_cannot_lift_the_limit_of_a_states_values(fleet: ToyFleet) -> None:
    largest = PLAN.model_copy(update={"max_state": 2 * MAX_STATE})
    with pytest.raises(AssertionError):
        Run(fleet, largest)
    for trainer in fleet.trainers.values():
        assert isinstance(trainer, GivenTrainer)
        assert trainer.fitted == []
