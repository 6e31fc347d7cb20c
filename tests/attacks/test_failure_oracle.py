"""Can a coordinator ask a device about its examples by making it fail? Finding 5 of the attacks on the round.

Real devices with tiny models and files of their own, under both privacy units; the coordinator chooses state and task:

- a head bias of -3.4e38 for one class makes the loss of exactly those devices infinite that hold an example of it;
- a plan whose labels leave one out fails on exactly those devices that hold an example of it.

Each told one bit a round with certainty: the first under the client unit, the second between neighbouring data sets.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.config.model import Adapter, Aggregate, BitFit, Lora, SecureAggregation, Task, Train
from fedpeft.ids import BlockId, NodeId
from fedpeft.privacy import Budget
from fedpeft.round.device.records import OpenRound
from fedpeft.round.failures import Trouble
from fedpeft.round.messages import Ready
from fedpeft.round.plan import ExampleTerms, LearningPlan, PlannedRounds
from fedpeft.round.task import RoundTask
from fedpeft.round.transport import Stage
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import CLIENT_PRIVACY, enrol, fit_request, toy_noise, toy_task
from fedpeft.wire import decode, encode

pytestmark = pytest.mark.torch

NODE = NodeId(1000)
ROWS = [{"text": f"the {word} sat {number}", "label": word} for number in range(10) for word in ("bird", "cat")]
TERMS = ExampleTerms(epsilon=8.0, delta=1e-3, l2_clip_norm=1.0, noise_multiplier=None, steps=20)


@pytest.fixture(autouse=True)
def any_state_is_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices refuse such states first; here they must stay silent about them too."""
    monkeypatch.setattr("fedpeft.round.device.accepting.MAX_STATE", math.inf)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from fedpeft.base import ArtifactStore, build
    from fedpeft.testing.models import save_tiny, tiny_bert

    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_bert(), folder / "model")
    return ArtifactStore(folder / "store"), build(str(folder / "model"), quantize="none", store=folder / "store")


class Ward:
    """One real device among three others of the same, and whatever its coordinator asks of it."""

    def __init__(self, folder: Path, base, unit: str) -> None:
        self.folder, (self.store, self.artifact), self.unit = folder, base, unit

    def plan(self, labels: tuple[str, ...] = ("bird", "cat"), **task: object) -> LearningPlan:
        train = Train(local_steps=2, batch_size=4, optimizer="sgd", learning_rate=0.1)
        plan = LearningPlan(
            run_id="toy-run",
            seed=0,
            base=self.artifact.digest,
            adapter_spec="",
            task=Task(kind="classify", labels=labels, max_length=16),
            adapter=Adapter(lora=Lora(rank=2), bitfit=BitFit()),
            train=train,
            aggregate=Aggregate(),
            rounds=PlannedRounds(count=10, eval_examples=0),
            secagg=SecureAggregation(),
            privacy=TERMS if self.unit == "example" else None,
            max_state=1e39,
            client_privacy=CLIENT_PRIVACY if self.unit == "client" else None,
        )
        return plan.model_copy(update={"adapter_spec": self.trainer("spec", ROWS).spec(plan).digest})

    def trainer(self, name: str, rows: list[dict[str, str]] | str):
        from fedpeft_client.site import Site
        from fedpeft_client.training.site_trainer import SiteTrainer

        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
        (folder / "notes.jsonl").write_text(text)
        limits = '[limits]\nmethods = ["lora", "bitfit"]\nresidency = "dense"\n'
        (folder / "site.toml").write_text(f'[data]\nsource = "{folder / "notes.jsonl"}"\n{limits}')
        site = Site.load(folder / "site.toml")
        return SiteTrainer(device=name, site=site, bases=self.store, clock=FakeClock())

    def initial(self, plan: LearningPlan) -> AdapterState:
        from fedpeft_client.training.model_pool import ModelPool

        return ModelPool(self.store).initial_state(plan)

    def task(self, plan: LearningPlan) -> RoundTask:
        task = toy_task(plan)
        return replace(task, noise=toy_noise(plan, devices=3)) if self.unit == "client" else task

    def asked(
        self, rows: list[dict[str, str]] | str, plan: LearningPlan, state: AdapterState, name: str
    ) -> tuple[bytes, Mapping[str, np.ndarray], list[str]]:
        """The device's whole answer, its input of the sum, and what its own log has."""
        from fedpeft.round.example_privacy import ExamplePrivacy
        from fedpeft_client.training.device_stores import device_ledger

        own = self.trainer(name, rows)
        own.first_state = lambda _: state  # as of a run that its site lets begin with an adapter from elsewhere
        fleet = enrol({"ward": own, **{f"z{i}": self.trainer(f"z{i}", ROWS) for i in (1, 2)}})
        device, told = fleet.devices[NODE], list[Trouble]()
        device._tell, device._speaks = told.append, False
        budget = Budget(epsilon=math.inf, delta=1e-3)
        device._examples = ExamplePrivacy(
            device_ledger(self.folder / f"{name}.jsonl", witness=self.folder / f"{name}.w" / "w", budget=budget),
            device._store,
        )
        request = fit_request(fleet, plan, state, task=self.task(plan))
        reply = device.handle(Stage.FIT, encode(request))
        assert "open-round" in fleet.stores["ward"].values, told
        opened = decode(fleet.stores["ward"].values["open-round"], OpenRound)
        inputs = {part.block_id: np.frombuffer(part.values, "<f4") for part in opened.inputs}
        return reply, inputs, [trouble.cause for trouble in told]


@pytest.fixture(params=["client", "example"])
def ward(request: pytest.FixtureRequest, tmp_path: Path, base) -> Ward:
    return Ward(tmp_path, base, request.param)


def test_a_hostile_head_bias_does_not_tell_who_holds_its_class(ward: Ward) -> None:
    plan = ward.plan()
    initial = ward.initial(plan)
    head = initial[BlockId("head")].copy()
    head[-2] = -3.4e38  # the bias of "bird"
    hostile = initial.replace({BlockId("head"): head})
    cats = [row | {"label": "cat"} for row in ROWS]
    with_bird, broken, told = ward.asked(ROWS, plan, hostile, "birds")
    without, _, _ = ward.asked(cats, plan, hostile, "cats")
    assert isinstance(decode(with_bird, Ready), Ready)
    assert with_bird == without
    assert all(np.isfinite(vector).all() for vector in broken.values())
    if ward.unit == "client":
        assert any("finite" in cause for cause in told), "the bias did break the training"


def test_a_plan_without_one_label_does_not_tell_who_holds_it(ward: Ward) -> None:
    plan = ward.plan()
    initial = ward.initial(plan)
    rare = [*ROWS[:-1], ROWS[-1] | {"label": "secret diagnosis"}]
    with_rare, inputs, told = ward.asked(rare, plan, initial, "rare")
    without, _, _ = ward.asked(ROWS, plan, initial, "plain")
    assert with_rare == without
    assert inputs[BlockId("head")].any(), "the other examples still train"
    assert any("1 of 20" in cause for cause in told)


UNREADABLE = {
    "a file of nonsense": "\0\1\2 no JSON at all\n" * 20,
    "another table": json.dumps({"name": "x", "age": 3}) + "\n",
    "only unknown labels": "\n".join(json.dumps(row | {"label": "zzz"}) for row in ROWS),
    "labels of another type": "\n".join(json.dumps(row | {"label": {"code": 7}}) for row in ROWS),
    "texts that are numbers": "\n".join(json.dumps(row | {"text": 7}) for row in ROWS),
    "half a surrogate": "\n".join(json.dumps(row | {"text": "\ud83d"}) for row in ROWS),
    "a line of nonsense": "\n".join([*map(json.dumps, ROWS), "{"]),
}


@pytest.mark.drawn(1, each=("kind",))
@pytest.mark.parametrize("kind", UNREADABLE)
def test_data_that_cannot_be_used_is_ready_with_nothing_to_add(ward: Ward, kind: str) -> None:
    plan = ward.plan()
    reply, inputs, told = ward.asked(UNREADABLE[kind], plan, ward.initial(plan), "unreadable")
    assert isinstance(decode(reply, Ready), Ready)
    assert told
    trained = {name: vector for name, vector in inputs.items() if name.startswith(("lora", "bitfit", "head"))}
    assert trained
    if ward.unit == "example":
        assert all(vector.all() for vector in trained.values()), "noise alone, in every coordinate"
    elif kind != "a line of nonsense":
        assert not any(vector.any() for vector in trained.values())
