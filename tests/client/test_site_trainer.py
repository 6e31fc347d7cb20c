"""The trainer of a real device: what the planner says is what is loaded and trained."""

import json
from pathlib import Path

import pytest

from fedpeft.config.model import Adapter, Aggregate, BitFit, Lora, SecureAggregation, Task, Train
from fedpeft.errors import ConfigInvalid, PolicyRefused
from fedpeft.round.plan import LearningPlan, PlannedRounds
from fedpeft.testing.clock import FakeClock

pytestmark = pytest.mark.torch

MIB = 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A store with a base that takes 12 MiB unpacked and 2 packed."""
    from fedpeft.base import ArtifactStore, build
    from fedpeft.testing.models import save_tiny, tiny_bert

    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_bert(vocabulary=90_000), folder / "model")
    return ArtifactStore(folder / "store"), build(str(folder / "model"), quantize="nf4", store=folder / "store")


def run_plan(artifact) -> LearningPlan:
    return LearningPlan(
        run_id="run",
        seed=0,
        base=artifact.digest,
        adapter_spec="",
        task=Task(kind="classify", labels=("bird", "cat"), max_length=16),
        adapter=Adapter(lora=Lora(rank=4, tiers=(2, 4)), bitfit=BitFit()),
        train=Train(local_steps=2, batch_size=4),
        aggregate=Aggregate(),
        rounds=PlannedRounds(count=1, eval_examples=4),
        secagg=SecureAggregation(),
    )


def trainer_of(tmp_path: Path, store, limits: str, **sensors):
    from fedpeft_client.site import Site
    from fedpeft_client.training.capacity import Sensors
    from fedpeft_client.training.site_trainer import SiteTrainer

    rows = [{"text": f"the {word}", "label": word} for word in ("bird", "cat")] * 10
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "site.toml"
    path.write_text(f'[data]\nsource = "{tmp_path / "notes.jsonl"}"\n{limits}')
    return SiteTrainer(
        device="ward-a", site=Site.load(path), bases=store, clock=FakeClock(), sensors=Sensors(**sensors)
    )


def needed_mb(artifact, residency: str, methods=("lora", "bitfit"), rank=4) -> int:
    """MiB that the planner asks for the whole adapter, or some of it, on this base."""
    from fedpeft.planner import REFERENCE, Workload, estimate, shape_of
    from fedpeft.planner.cost import MEMORY_ERROR

    plan = run_plan(artifact)
    work = Workload(
        adapter=plan.adapter,
        methods=methods,
        rank=rank,
        classes=2,
        batch_size=4,
        length=16,
        local_steps=2,
        eval_examples=4,
        residency=residency,
    )
    return 1 + round(estimate(shape_of(artifact), work, REFERENCE).peak_bytes * (1 + MEMORY_ERROR)) // MIB


def packed_layers(trainer, plan) -> int:
    from fedpeft.base.residency import QuantizedLinear

    trainer.spec(plan)
    with trainer._pool.lend(plan) as union:
        return sum(isinstance(module, QuantizedLinear) for module in union.model.modules())


def test_where_the_unpacked_base_does_not_fit_the_planner_keeps_it_packed_and_so_it_is_loaded(tmp_path, base) -> None:
    store, artifact = base
    dense, packed = needed_mb(artifact, "dense"), needed_mb(artifact, "quantized")
    assert dense - packed > 8
    plan = run_plan(artifact)
    roomy = trainer_of(tmp_path, store, f"[limits]\nram_mb = {dense + 1}\n")
    tight = trainer_of(tmp_path, store, f"[limits]\nram_mb = {packed + 1}\n")
    assert packed_layers(roomy, plan) == 0
    assert packed_layers(tight, plan) > 0
    assert roomy.methods == tight.methods == "lora r4 + bitfit"
    assert roomy.trains(plan) == tight.trains(plan) == {"lora.B.t2", "lora.B.t4", "bitfit", "head"}


def test_what_the_site_says_of_memory_binds_the_planner(tmp_path, base) -> None:
    store, artifact = base
    plan = run_plan(artifact)
    assert packed_layers(trainer_of(tmp_path, store, '[limits]\nresidency = "quantized"\n'), plan) > 0
    limits = f'[limits]\nresidency = "dense"\nram_mb = {needed_mb(artifact, "quantized") + 1}\n'
    with pytest.raises(ConfigInvalid, match="No method fits"):
        trainer_of(tmp_path, store, limits).spec(plan)


def test_micro_batches_leave_the_planner_more_to_train(tmp_path, base) -> None:
    store, artifact = base
    plan = run_plan(artifact)
    plan = plan.model_copy(update={"train": plan.train.model_copy(update={"batch_size": 1024})})
    limits = f'[limits]\nresidency = "quantized"\nram_mb = {needed_mb(artifact, "quantized") + 4}\n'
    assert trainer_of(tmp_path, store, f"{limits}micro_batch = 4\n").trains(plan) > {"lora.B.t4", "bitfit"}
    with pytest.raises(ConfigInvalid, match="No method fits"):
        trainer_of(tmp_path, store, limits).trains(plan)


def test_named_methods_are_trained_without_a_plan_and_held_as_the_site_says(tmp_path, base) -> None:
    store, artifact = base
    plan = run_plan(artifact)
    trainer = trainer_of(tmp_path, store, '[limits]\nmethods = ["lora"]\nrank = 2\nresidency = "quantized"\n')
    assert packed_layers(trainer, plan) > 0
    assert trainer.trains(plan) == {"lora.B.t2", "head"}


def test_a_plan_that_the_site_forbids_is_refused_before_an_example_is_read(tmp_path, base) -> None:
    store, artifact = base
    trainer = trainer_of(tmp_path, store, '[policy]\nallow_bases = ["sha256:other"]\n')
    (tmp_path / "notes.jsonl").unlink()
    with pytest.raises(PolicyRefused, match="allow_bases"):
        trainer.spec(run_plan(artifact))


def test_a_device_drops_to_what_fits_while_others_take_its_memory_and_comes_back(tmp_path, base) -> None:
    store, artifact = base
    plan, free = run_plan(artifact), [1024 * MIB]
    trainer = trainer_of(tmp_path, store, '[limits]\nresidency = "dense"\n', free_bytes=lambda: free[0])
    trainer.spec(plan)
    everything = trainer.trains(plan)
    assert everything == {"lora.B.t2", "lora.B.t4", "bitfit", "head"}
    free[0] = (needed_mb(artifact, "dense") - 1) * MIB
    assert trainer.trains(plan) == everything  # not in the middle of a round
    trainer.spec(plan)
    fewer = trainer.trains(plan)
    assert "head" in fewer
    assert fewer < everything
    free[0] = 1
    with pytest.raises(ConfigInvalid, match="No method fits"):
        trainer.spec(plan)
    free[0] = 1024 * MIB
    trainer.spec(plan)
    assert trainer.trains(plan) == everything


def test_on_a_low_battery_a_device_trains_the_cheapest_choice(tmp_path, base) -> None:
    store, artifact = base
    plan, charge = run_plan(artifact), [None]
    trainer = trainer_of(tmp_path, store, "[limits]\nbattery_floor = 0.3\n", charge=lambda: charge[0])
    found = []
    for charge[0] in (None, 0.31, 0.29):
        trainer.spec(plan)
        found.append(trainer.trains(plan))
    assert found == [{"lora.B.t2", "lora.B.t4", "bitfit", "head"}] * 2 + [{"head"}]


def test_named_methods_are_kept_whatever_the_battery_says(tmp_path, base) -> None:
    store, artifact = base
    plan = run_plan(artifact)
    trainer = trainer_of(tmp_path, store, '[limits]\nmethods = ["lora"]\n', charge=lambda: 0.01)
    trainer.spec(plan)
    assert trainer.trains(plan) == {"lora.B.t2", "lora.B.t4", "head"}


@pytest.mark.parametrize("rows", [16, 20, 25])
def test_what_a_device_declares_and_trains_is_a_function_of_its_size_class_alone(tmp_path, base, rows: int) -> None:
    """16 to 25 rows are 13 to 20 to train on: one class, whatever their number and however many of them can be used."""
    store, artifact = base
    plan = run_plan(artifact)
    trainer = trainer_of(tmp_path, store, "[limits]\nram_mb = 600\n")
    examples = [{"text": f"the bird {number}", "label": "bird" if number % 2 else "cat"} for number in range(rows)]
    examples[0]["label"] = "secret diagnosis"
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, examples)))
    assert (trainer.size_class(plan), trainer.evaluates(plan)) == (4, True)
    assert trainer.methods == "lora r4 + bitfit"


def test_a_site_may_hide_its_size(tmp_path, base) -> None:
    from fedpeft.round.plan import ExampleTerms

    store, artifact = base
    plan = run_plan(artifact)
    trainer = trainer_of(tmp_path, store, "[policy]\ndeclare_size = false\n")
    assert trainer.size_class(plan) == 0
    terms = ExampleTerms(epsilon=8.0, delta=1e-3, l2_clip_norm=1.0, noise_multiplier=None, steps=4)
    with pytest.raises(PolicyRefused, match="declare_size"):
        trainer.spec(plan.model_copy(update={"privacy": terms}))


def test_a_size_class_is_pinned_over_a_run_though_the_data_grows(tmp_path, base) -> None:
    from fedpeft_client.training.device_stores import MemoryStore
    from fedpeft_client.training.site_trainer import SiteTrainer

    store, artifact = base
    plan, memory = run_plan(artifact), MemoryStore()
    found = []
    for more in (1, 8, 8):
        trainer = trainer_of(tmp_path, store, "")
        path = tmp_path / "notes.jsonl"
        path.write_text((path.read_text() + "\n") * more)
        again = SiteTrainer(
            device="ward-a", site=trainer._site, bases=store, clock=FakeClock(), memory=memory, sensors=trainer._sensors
        )
        run = plan if len(found) < 2 else plan.model_copy(update={"run_id": "a later run"})
        found.append(again.size_class(run))
    assert found == [3, 3, 6], "a run keeps its class, another has its own"


def test_a_device_declares_people_and_trains_on_nobodys_rows_never(tmp_path, base) -> None:
    """Forty rows of ten people: the class is that of the people, whatever their rows, and unnamed rows are left out."""
    from fedpeft.round.plan import ExampleTerms

    store, artifact = base
    terms = ExampleTerms(
        epsilon=8.0,
        delta=1e-3,
        l2_clip_norm=1.0,
        noise_multiplier=None,
        steps=4,
        unit="person",
        examples_per_person=2,
        persons="do-not-cross",
    )
    plan = run_plan(artifact).model_copy(update={"privacy": terms})
    trainer = trainer_of(tmp_path, store, 'map = {person = "patient"}\npersons = "do-not-cross"\n')
    rows = [{"text": f"the bird {n}", "label": "bird", "patient": f"patient {n % 10}"} for n in range(40)]
    unnamed = [{"text": f"the cat {n}", "label": "cat", "patient": None} for n in range(9)]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, [*rows, *unnamed])))
    read = trainer._read(plan)
    people = {row["patient"] for row in read.train}
    assert read.people == len(people)
    assert None not in people
    assert 1 <= len(people) <= 10
    assert len(read.train) == 4 * len(people)
    assert trainer.size_class(plan) == (4 if len(people) >= 12 else 3 if len(people) >= 6 else 2)
    assert any("9 of 49 rows have no person" in trouble for trouble in trainer._troubles)
    assert not any("patient" in trouble for trouble in trainer._troubles), "no name of a person is logged"
