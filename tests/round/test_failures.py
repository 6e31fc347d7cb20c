"""What follows from the examples is not heard of: the same bytes leave a device whatever its data does to it.

Two devices of one seed, one whole and one broken in each way that data can break it. Failures: everything the trainer
can raise or return, in training and in evaluation, by every privacy unit. Not covered: the time of an answer.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.errors import BudgetExhausted, ConfigInvalid, DataInvalid, FedpeftError, ResourceMissing, RunFailed
from fedpeft.ids import BlockId, NodeId
from fedpeft.privacy import Budget, PrivacyLedger, SampledRelease
from fedpeft.round.device.records import OpenRound
from fedpeft.round.example_privacy import ExamplePrivacy
from fedpeft.round.failures import Trouble
from fedpeft.round.local import Effort, LocalResult
from fedpeft.round.messages import Failure, Ready
from fedpeft.round.plan import ExampleTerms, LearningPlan
from fedpeft.round.task import RoundTask
from fedpeft.round.transport import Stage
from fedpeft.round.work import Work
from fedpeft.testing.fleet import CLIENT_PRIVACY, ToyFleet, enrol, fit_request, toy_noise, toy_task
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

SPEC = toy_spec({"head": 4, "bitfit": 5})
STATE = toy_state(SPEC)
NODE = NodeId(1000)
DELTAS = {"head": np.ones(4, np.float32), "bitfit": np.ones(5, np.float32)}
EXAMPLE_TERMS = ExampleTerms(epsilon=8.0, delta=1e-3, l2_clip_norm=1.0, noise_multiplier=None, steps=40)

Fails = Callable[[LocalResult], LocalResult]


def raises(error: BaseException) -> Fails:
    def fail(result: LocalResult) -> LocalResult:
        raise error

    return fail


def with_delta(block: str, value: float) -> Fails:
    def spoil(result: LocalResult) -> LocalResult:
        spoilt = result.deltas[BlockId(block)].copy()
        spoilt[1] = value
        return replace(result, deltas={**result.deltas, BlockId(block): spoilt})

    return spoil


BROKEN: dict[str, Fails] = {
    "a delta is NaN": with_delta("head", math.nan),
    "a delta is infinite": with_delta("bitfit", math.inf),
    "a delta is minus infinity": with_delta("bitfit", -math.inf),
    "the training loss is NaN": lambda result: replace(result, trained_loss=math.nan),
    "the held-out loss is infinite": lambda result: replace(result, evaluated_loss=math.inf),
    "a block is missing": lambda result: replace(result, deltas={BlockId("head"): result.deltas[BlockId("head")]}),
    "a block has another length": lambda result: replace(result, deltas={BlockId("head"): np.ones(3, np.float32)}),
    "the loss diverged": raises(RunFailed("Expected a finite loss, found nan at step 3.")),
    "a block did not move": raises(RunFailed("Expected head to move in 4 private steps, found it as it was.")),
    "no examples": raises(DataInvalid("Expected at least one example to train or evaluate on, found none.")),
    "an unknown label": raises(DataInvalid("row 3: found the label 'secret diagnosis'")),
    "the budget is out of reach": raises(ConfigInvalid("The privacy budget cannot be reached on this device.")),
    "the budget is spent": raises(BudgetExhausted("Expected epsilon 3, found 4.")),
    "no memory": raises(MemoryError()),
    "no memory, as torch says it": raises(RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    "no disk": raises(ResourceMissing("Expected 900 MiB free in /tmp, found less.")),
    "a file that cannot be read": raises(OSError(5, "Input/output error")),
    "no gradient of each example": raises(RunFailed("Expected one loss per example, found (3, 2).")),
    "a decomposition that does not converge": raises(np.linalg.LinAlgError("SVD did not converge")),
    "a bug": raises(KeyError("patient 7")),
    "a bug of another kind": raises(AssertionError("patient 7")),
}


class Breaking(GivenTrainer):
    """Trains as given, and then fails as told; from the effort at which it does not, it is well."""

    def __init__(self, fails: Fails | None, *, well_at: Effort | None = None) -> None:
        super().__init__(SPEC, DELTAS, examples=200)
        self.fails, self.well_at, self.efforts = fails, well_at, list[Effort]()

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        self.efforts.append(effort)
        result = super().fit(plan, state, work, effort)
        broken = self.fails is not None and (self.well_at is None or effort < self.well_at)
        return self.fails(result) if broken and self.fails else result


class Unit:
    """A privacy unit, as a plan and a task have it."""

    def __init__(self, name: str, where: Path) -> None:
        plan, self.where, self.name = toy_plan(SPEC), where, name
        units = {"example": {"privacy": EXAMPLE_TERMS}, "client": {"client_privacy": CLIENT_PRIVACY}, "none": {}}
        self.plan = plan.model_copy(update=units[name])

    def task(self, **changes: int) -> RoundTask:
        task = toy_task(self.plan, **changes)
        return replace(task, noise=toy_noise(self.plan, devices=4)) if self.name == "client" else task

    def fleet(self, trainer: Breaking, *, speaks: bool = True) -> tuple[ToyFleet, list[Trouble]]:
        fleet = enrol({"d0": trainer, **{f"d{i}": Breaking(None) for i in (1, 2, 3)}})
        told: list[Trouble] = []
        device = fleet.devices[NODE]
        device._tell, device._speaks = told.append, speaks
        folder = self.where / f"{id(fleet)}"
        budget = Budget(epsilon=math.inf, delta=1e-3)
        device._examples = ExamplePrivacy(
            lambda: PrivacyLedger(folder / "journal.jsonl", witness=folder / "w" / "witness", budget=budget),
            device._store,
        )
        return fleet, told

    def answer(self, trainer: Breaking, *, speaks: bool = True) -> tuple[bytes, ToyFleet, list[str]]:
        fleet, told = self.fleet(trainer, speaks=speaks)
        request = encode(fit_request(fleet, self.plan, STATE, task=self.task()))
        return fleet.devices[NODE].handle(Stage.FIT, request), fleet, [trouble.cause for trouble in told]


@pytest.fixture(params=["client", "example", "none"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Unit:
    return Unit(request.param, tmp_path)


def test_a_bug_in_training_has_a_traceback_for_the_devices_operator_and_a_refusal_none(tmp_path: Path) -> None:
    for name, traced in (("a bug", True), ("no examples", False)):
        unit = Unit("none", tmp_path)
        fleet, told = unit.fleet(Breaking(BROKEN[name]))
        fleet.devices[NODE].handle(Stage.FIT, encode(fit_request(fleet, unit.plan, STATE, task=unit.task())))
        assert ("patient 7" in told[0].trace and "Traceback" in told[0].trace) is traced


def inputs(fleet: ToyFleet) -> dict[str, np.ndarray]:
    opened = decode(fleet.stores["d0"].values["open-round"], OpenRound)
    return {part.block_id: np.frombuffer(part.values, "<f4") for part in opened.inputs}


@pytest.mark.parametrize("name", BROKEN)
def test_every_data_dependent_failure_gives_the_same_bytes(unit: Unit, name: str) -> None:
    whole, _, nothing = unit.answer(Breaking(None), speaks=False)
    broken, fleet, told = unit.answer(Breaking(BROKEN[name]), speaks=False)
    assert isinstance(decode(whole, (Ready, Failure)), Ready)
    assert broken == whole
    assert nothing == []
    assert told, "the cause is in the device's own log"
    assert {"head", "bitfit"} <= set(inputs(fleet)), "it keeps a vector for every sum that it owns"
    assert all(np.isfinite(vector).all() for vector in inputs(fleet).values())


@pytest.mark.drawn(1, each=("name",))
@pytest.mark.parametrize("name", BROKEN)
def test_a_device_that_failed_goes_through_the_whole_sum_with_zeros(unit: Unit, name: str) -> None:
    """The later stages refuse nothing either, and answer as those of a device that is well."""
    sizes = []
    for fails in (None, BROKEN[name]):
        fleet, _ = unit.fleet(Breaking(fails), speaks=False)
        task = unit.task()
        request = fit_request(fleet, unit.plan, STATE, task=task)
        ready = decode(fleet.devices[NODE].handle(Stage.FIT, encode(request)), Ready)
        assert decode(ready.advertise, secagg.Advertise).blocks
        sizes.append({name: vector.size for name, vector in inputs(fleet).items()})
        if fails is not None and "loss" not in name and "block" not in name and "delta" not in name:
            assert not inputs(fleet)["head"].any()
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["a delta is NaN", "a delta is infinite"])
def test_only_the_block_that_is_not_finite_is_zero(unit: Unit, name: str) -> None:
    _, fleet, told = unit.answer(Breaking(BROKEN[name]), speaks=False)
    broken, kept = ("head", "bitfit") if "NaN" in name else ("bitfit", "head")
    assert not inputs(fleet)[broken].any()
    assert inputs(fleet)[kept].all()
    assert any(broken in cause for cause in told)


def test_without_privacy_a_device_may_say_one_constant_bit(tmp_path: Path) -> None:
    unit = Unit("none", tmp_path)
    heard = {unit.answer(Breaking(fails))[0] for fails in BROKEN.values()}
    (reply,) = heard
    assert decode(reply, Failure).reason.value == "unable"
    for private in (Unit("client", tmp_path), Unit("example", tmp_path)):
        assert {private.answer(Breaking(fails))[0] for fails in BROKEN.values()} == {private.answer(Breaking(None))[0]}


@pytest.mark.parametrize("lack", ["no memory", "no memory, as torch says it", "no disk"])
def test_what_fails_for_lack_of_room_is_tried_once_more_with_care(unit: Unit, lack: str) -> None:
    trainer = Breaking(BROKEN[lack], well_at=Effort.CAREFUL)
    reply, fleet, told = unit.answer(trainer)
    assert isinstance(decode(reply, (Ready, Failure)), Ready)
    assert trainer.efforts == [Effort.FULL, Effort.CAREFUL]
    assert inputs(fleet)["head"].all()
    assert told


def test_a_process_that_died_over_its_training_is_more_careful_each_time(unit: Unit) -> None:
    """A kill in the middle of ``fit``: the agent asks again, and the device knows that it has tried."""

    class Killed(BaseException):
        pass

    trainer = Breaking(raises(Killed()), well_at=Effort.BLANK)
    fleet, _ = unit.fleet(trainer, speaks=False)
    request = encode(fit_request(fleet, unit.plan, STATE, task=unit.task()))
    for _ in (Effort.FULL, Effort.CAREFUL):
        with pytest.raises(Killed):
            fleet.devices[NODE].handle(Stage.FIT, request)
    assert isinstance(decode(fleet.devices[NODE].handle(Stage.FIT, request), (Ready, Failure)), Ready)
    blank = [Effort.BLANK] if unit.name == "example" else []  # whose steps are noise alone; else nothing is asked
    assert trainer.efforts == [Effort.FULL, Effort.CAREFUL, *blank]


REFUSALS: dict[str, FedpeftError | Exception] = {
    "the site's rules": ConfigInvalid("Expected a time in 20:00-06:00, found 12:13."),
    "a budget": BudgetExhausted("Expected another round within epsilon=3, found 4."),
    "the base": ResourceMissing("Expected the base sha256:toy, found nothing."),
    "a bug": ZeroDivisionError("patient 7"),
    "memory": MemoryError(),
}


class Refusing(GivenTrainer):
    """Refuses before any example is touched."""

    def __init__(self, error: Exception, at: str) -> None:
        super().__init__(SPEC, DELTAS, examples=200)
        self.error, self.at = error, at

    def spec(self, plan):  # type: ignore[no-untyped-def]
        if self.at == "spec":
            raise self.error
        return super().spec(plan)

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        if self.at == "cost":
            raise self.error
        return super().cost(plan)


def test_all_refusals_are_the_same_bytes(tmp_path: Path) -> None:
    heard, causes = set(), set()
    for error in REFUSALS.values():
        for at in ("spec", "cost"):
            unit = Unit("none", tmp_path)
            reply, _, told = unit.answer(Refusing(error, at))  # type: ignore[arg-type]
            heard.add(reply)
            causes |= set(told)
    assert heard == {encode(Failure(reason=decode(next(iter(heard)), Failure).reason))}
    assert len(causes) == len(REFUSALS)


def test_a_refusal_of_a_later_stage_leaves_without_its_text(tmp_path: Path) -> None:
    unit = Unit("none", tmp_path)
    fleet, told = unit.fleet(Breaking(None))
    device = fleet.devices[NODE]
    request = fit_request(fleet, unit.plan, STATE, task=unit.task())
    device.handle(Stage.FIT, encode(request))
    context = decode(decode(device.handle(Stage.FIT, encode(request)), Ready).advertise, secagg.Advertise).context
    strange = secagg.MaskRequest(context=context, sharers=b"\xf0", ciphertexts=())
    refusal = decode(device.handle(Stage.MASK, encode(strange)), secagg.Refusal)
    assert refusal.detail == ""
    assert told[-1].cause.startswith(refusal.reason.value)
    assert len(told[-1].cause) > len(refusal.reason.value) + 2
