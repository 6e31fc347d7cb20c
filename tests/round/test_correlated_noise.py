"""Correlated noise on the device: charged by turns, kept after the charge and before the reply, never used twice.

No torch: the trainer's deltas are its rows of noise and nothing else.
"""

import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.entropy import os_entropy
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId, NodeId
from fedpeft.privacy import (
    BANDS,
    Budget,
    CorrelatedNoise,
    NoiseStream,
    PrivacyLedger,
    SampledRelease,
    sampled_epsilon,
    turns,
)
from fedpeft.round.device.records import OpenRound
from fedpeft.round.example_privacy import STREAMS, ExamplePrivacy, noise_in_model, noise_of, round_cost
from fedpeft.round.local import Effort, LocalResult
from fedpeft.round.messages import Failure, Ready
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.size_class import lower_end, size_class
from fedpeft.round.transport import Stage
from fedpeft.round.work import Work
from fedpeft.testing.fleet import ToyFleet, enrol, fit_request, toy_task
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

SPEC = toy_spec({"head": 40, "lora": 8})
STATE = toy_state(SPEC)
TERMS = ExampleTerms(
    epsilon=8.0, delta=1e-4, l2_clip_norm=1.0, noise_multiplier=None, steps=24, noise="correlated", momentum=0.9
)
PLAN = toy_plan(SPEC).model_copy(update={"privacy": TERMS})
PLAN = PLAN.model_copy(update={"train": PLAN.train.model_copy(update={"local_steps": 4})})  # six rounds
DEVICE = NodeId(1000)
EXAMPLES = 2000
NOISE = noise_of(TERMS, PLAN.train.batch_size, size_class(EXAMPLES), 48)


class Rows(GivenTrainer):
    """Its deltas are the last row of noise of the round; it may fail before it has taken all steps."""

    def __init__(self) -> None:
        super().__init__(SPEC, {"head": np.zeros(40, np.float32), "lora": np.zeros(8, np.float32)}, examples=EXAMPLES)
        self.fails = 0

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``."""
        assert work.noise is not None
        noise = CorrelatedNoise(work.noise, 48)
        for step in range(plan.train.local_steps):
            if self.fails and step == 2:
                self.fails -= 1
                raise RuntimeError("a bad row")
            row = noise.next_row(os_entropy).astype(np.float32)
        self.deltas = {BlockId("head"): row[:40], BlockId("lora"): row[40:]}
        return replace(super().fit(plan, state, work, effort), noise=noise.stream())


class Site:
    """One device with a ledger among others."""

    def __init__(self, where: Path) -> None:
        self.journal, self.witness = where / "device.jsonl", where / "elsewhere" / "witness"
        self.trainer = Rows()
        self.fleet: ToyFleet = enrol({"a": self.trainer, "b": Rows(), "c": Rows()})
        self.restart()

    def restart(self) -> None:
        self.fleet.restart(DEVICE)
        device = self.fleet.devices[DEVICE]
        self.store = device._store
        device._examples, self.told = ExamplePrivacy(self.ledger, self.store), []
        device._tell = lambda trouble: self.told.append(trouble.cause)

    def ledger(self) -> PrivacyLedger:
        return PrivacyLedger(self.journal, witness=self.witness, budget=Budget(epsilon=math.inf, delta=1e-4))

    def charged(self) -> list[int]:
        """Turns, entry by entry."""
        with self.ledger() as ledger:
            return [entry.release.steps for entry in ledger.entries]  # type: ignore[union-attr]

    def stream(self, run_id: str = PLAN.run_id) -> NoiseStream:
        found = STREAMS.of(self.store, run_id)
        assert found is not None
        return found

    def fit(self, round_id: int, plan: LearningPlan = PLAN, attempt: int = 1) -> Ready | Failure:
        request = fit_request(self.fleet, plan, STATE, task=toy_task(plan, round_id=round_id, attempt=attempt))
        return decode(self.fleet.devices[DEVICE].handle(Stage.FIT, encode(request)), (Ready, Failure))


def test_a_device_finds_how_far_its_noise_reaches_from_what_is_public() -> None:
    assert NOISE.bands > 4, "or the tests below test little"
    rate = PLAN.train.batch_size / lower_end(size_class(EXAMPLES))
    assert NOISE.sampling_rate == pytest.approx(NOISE.bands * rate)
    assert NOISE.sampling_rate <= 1
    cost = round_cost(PLAN, declared=size_class(EXAMPLES), parameters=48)
    assert cost is not None
    whole = replace(cost, steps=turns(0, TERMS.steps, NOISE.bands))
    assert 0.97 * 8.0 < sampled_epsilon([(whole, 1)], TERMS.delta) <= 8.0
    assert cost.parameters == 48 * NOISE.bands
    left = {bands: noise_in_model(NOISE._replace(bands=bands), 24, 0.9) for bands in BANDS[:2]}
    assert left[2] < left[1], "at the same multiplier less is left; what that costs is a larger one"


@pytest.mark.parametrize("batch", [8, 64, 512, 2000])
def test_correlated_noise_is_chosen_only_where_less_of_it_is_left(batch: int) -> None:
    plain = noise_of(TERMS.model_copy(update={"noise": "independent", "momentum": 0.0}), batch, 11, 1000)
    found = noise_of(TERMS, batch, 11, 1000)
    ours, theirs = (noise_in_model(one, TERMS.steps, TERMS.momentum) for one in (found, plain))
    assert ours <= theirs * (1 + 1e-9)
    if batch == 2000:
        assert found == plain, "the whole data set in each step: independent noise, to the same multiplier"
    if batch == 8:
        assert ours < 0.7 * theirs


def test_rounds_are_charged_by_turns_and_all_together_keep_the_budget(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for round_id in range(1, 7):
        answer = site.fit(round_id)
        assert isinstance(answer, Ready)
        assert answer.privacy is not None
        assert answer.privacy.steps == turns(0, 4 * round_id, NOISE.bands)
        assert site.stream().taken == 4 * round_id
    assert site.charged() == [turns(4 * r, 4 * r + 4, NOISE.bands) for r in range(6)]
    assert sum(site.charged()) == turns(0, 24, NOISE.bands)
    assert 0.97 * 8.0 < answer.privacy.epsilon <= 8.0
    assert site.stream().rows == (), "after the last step no noise is to be taken back, and none is kept"
    assert isinstance(site.fit(7), Failure), "more is past the budget"


def test_the_rows_of_all_rounds_are_one_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of one step alone: what later rounds take back of it is the matrix's, over restarts of the device."""
    from fedpeft.privacy import noise_stream
    from fedpeft.privacy.correlated import coefficients, inverse

    step, found = [0], []

    def draw(sigma: float, size: int, entropy: object) -> np.ndarray:
        step[0] += 1
        return np.full(size, (1 << 20) if step[0] == 4 else 0, np.int32)

    monkeypatch.setattr(noise_stream, "discrete_gaussian", draw)
    site = Site(tmp_path)
    for round_id in (1, 2, 3):
        site.fit(round_id)
        found.append(float(site.trainer.deltas[BlockId("head")][0]))
        site.restart()
    expected = inverse(coefficients(NOISE.bands, 0.9), 9)
    assert np.allclose(np.array(found) / (1 << 20), expected[[0, 4, 8]], atol=1e-5)


def test_another_attempt_at_a_round_takes_no_other_row(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fit(1)
    before, opened = site.stream(), decode(site.store.read("open-round") or b"", OpenRound)
    assert isinstance(site.fit(1, attempt=2), Ready)
    assert site.stream() == before
    again = decode(site.store.read("open-round") or b"", OpenRound)
    assert again.result == opened.result
    assert site.charged() == [1]


@pytest.mark.parametrize("when", ["before the charge", "before the rows", "before the reply"])
def test_a_crash_between_any_two_writes_repeats_no_row_and_leaves_none_unpaid(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        """As a kill: nothing catches it."""

    site = Site(tmp_path)
    site.fit(1)
    first = site.stream()

    def crash(*_: object, **__: object) -> None:
        raise Crash

    real = type(site.store).write
    # Of the open round there is the record that it was begun, and then the one with its result.
    left = {"before the rows": ["noise"], "before the reply": ["open-round", "open-round"]}.get(when, [])

    def write(store: object, key: str, value: bytes) -> None:
        if key in left:
            left.remove(key)
            if not left:
                raise Crash
        real(store, key, value)

    if left:
        monkeypatch.setattr(type(site.store), "write", write)
    else:
        monkeypatch.setattr(PrivacyLedger, "charge", crash)
    with pytest.raises(Crash):
        site.fit(2)
    monkeypatch.undo()
    site.restart()
    assert isinstance(site.fit(2, attempt=2), Ready)
    after = site.stream()
    if when == "before the charge":  # nothing can have left: the same steps, drawn anew
        assert (after.name, after.taken) == (first.name, 8)
    elif when == "before the rows":  # charged, and the rows are gone: another stream, from its first turn
        assert (after.name != first.name, after.taken) == (True, 4)
        assert site.charged()[-1] == 1
    else:  # those rows count as used
        assert (after.name, after.taken) == (first.name, 12)
    steps = after.taken if after.name == first.name else after.taken + first.taken
    assert sum(site.charged()) >= turns(0, steps, NOISE.bands)


def test_an_older_copy_of_the_rows_is_not_gone_on_with(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fit(1)
    old = site.store.read("noise")
    assert old is not None
    site.fit(2)
    name = site.stream().name
    site.store.write("noise", old)
    site.fit(3)
    assert site.stream().name != name
    assert site.stream().taken == 4
    assert site.charged() == [1, 0 if NOISE.bands >= 8 else 1, 1]


def test_damaged_rows_and_other_blocks_begin_another_stream(tmp_path: Path) -> None:
    for name, change in {"rows": {"rows": ()}, "blocks": {"blocks": (BlockId("head"),)}, "bands": {"bands": 2}}.items():
        site = Site(tmp_path / name)
        site.fit(1)
        whole = site.stream()
        site.store.write("noise", encode(replace(whole, **change)))  # type: ignore[arg-type]
        assert isinstance(site.fit(2), Ready)
        assert site.stream().name != whole.name
        assert site.charged() == [1, 1]


@pytest.mark.parametrize("classes", [[11, 10, 10], [10, 11, 11], [10, 10, 12, 12], [12, 11, 10], [11, 11, 11]], ids=str)
def test_every_turn_of_every_group_is_charged_under_the_noise_that_it_had(tmp_path: Path, classes: list[int]) -> None:
    """Whatever a device's number of examples becomes between rounds; counted here step by step, without ``turns``."""
    site = Site(tmp_path)
    taken: dict[tuple[str, int], Counter[tuple[float, float]]] = defaultdict(Counter)  # of each group of each stream
    for round_id, declared in enumerate(classes, 1):
        site.trainer._examples = 1 << declared
        noise = noise_of(TERMS, PLAN.train.batch_size, size_class(1 << declared), 48)
        before = site.charged()
        if isinstance(site.fit(round_id), Failure):
            assert site.charged() == before
            break
        stream = site.stream()
        for step in range(stream.taken - 4, stream.taken):
            taken[stream.name, step % noise.bands][noise.noise_multiplier, noise.sampling_rate] += 1
    assert round_id > 1
    worst: Counter[tuple[float, float]] = Counter()
    for name in {name for name, _ in taken}:  # an example may be in any group of each stream
        of_groups: Counter[tuple[float, float]] = Counter()
        for own, turns_of in taken.items():
            of_groups |= turns_of if own[0] == name else Counter()
        worst += of_groups
    paid: Counter[tuple[float, float]] = Counter()
    with site.ledger() as ledger:
        for entry in ledger.entries:
            assert isinstance(entry.release, SampledRelease)
            paid[entry.release.noise_multiplier, entry.release.sampling_rate] += entry.release.steps
    assert worst <= paid


def test_runs_in_between_do_not_end_a_runs_stream(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for round_id in (1, 2, 3):
        for run in ("one", "two"):
            assert isinstance(site.fit(round_id, PLAN.model_copy(update={"run_id": run})), Ready)
    assert site.stream("one").taken == site.stream("two").taken == 12
    assert site.stream("one").key != site.stream("two").key
    assert sum(site.charged()) == 2 * turns(0, 12, NOISE.bands)


def test_a_training_that_fails_is_charged_and_uses_no_row(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.fit(1)
    before = site.stream()
    site.trainer.fails = 1  # once: the steps are then taken without examples
    assert isinstance(site.fit(2), Ready)
    assert site.stream().taken == 8
    site.trainer.fails = 9
    assert isinstance(site.fit(3), Ready), "silent, with zeros"
    assert (site.stream().name, site.stream().taken) == (before.name, 8)
    site.trainer.fails = 0
    site.fit(4)
    assert (site.stream().name, site.stream().taken) == (before.name, 12)
    assert sum(site.charged()) >= turns(0, 12, NOISE.bands)


def test_a_plan_of_independent_noise_reads_as_before_and_one_of_both_is_refused() -> None:
    plain = PLAN.model_copy(update={"privacy": TERMS.model_copy(update={"noise": "independent", "momentum": 0.0})})
    assert '"momentum"' not in plain.to_json()
    assert LearningPlan.from_json(plain.to_json()) == plain
    assert LearningPlan.from_json(PLAN.to_json()) == PLAN
    for wrong in (
        PLAN.to_json().replace('"noise_multiplier":null', '"noise_multiplier":0.01'),
        PLAN.to_json().replace('"momentum":0.9', '"momentum":1.0'),
        PLAN.to_json().replace('"noise":"correlated"', '"noise":"independent"'),
        PLAN.to_json().replace('"noise":"correlated"', '"noise":"none"'),
    ):
        assert wrong != PLAN.to_json()
        with pytest.raises(SpecMismatch):
            LearningPlan.from_json(wrong)


def test_where_independent_noise_is_chosen_no_stream_is_kept_and_every_step_is_charged(tmp_path: Path) -> None:
    whole = PLAN.model_copy(update={"train": PLAN.train.model_copy(update={"batch_size": EXAMPLES})})
    site = Site(tmp_path)
    chosen = noise_of(TERMS, EXAMPLES, site.trainer.size_class(whole), 48)
    assert chosen.bands == 1
    stream, cost = site.fleet.devices[DEVICE]._examples.afford(
        whole, SPEC, site.trainer, round_cost(whole, declared=site.trainer.size_class(whole), parameters=48), os_entropy
    )
    assert stream is None
    assert cost.steps == whole.train.local_steps


def test_a_stream_is_whole_with_as_many_rows_as_the_next_step_needs_and_each_of_its_length() -> None:
    begun = NoiseStream.begin("run", {"head": 3}, bands=4, momentum=0.0, entropy=os_entropy)
    assert begun.whole(3)
    for taken, rows in ((1, 1), (3, 3), (9, 3)):
        stream = replace(begun, taken=taken, rows=(bytes(12),) * rows)
        assert stream.whole(3)
        assert not stream.whole(4)
        assert not replace(stream, rows=stream.rows[1:]).whole(3)
        assert not replace(stream, rows=(*stream.rows, bytes(12))).whole(3)
