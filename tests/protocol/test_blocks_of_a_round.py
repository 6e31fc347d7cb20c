"""docs/protocol.md, "The blocks of a round", read apart from the code: what an outsider has to propose."""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.aggregate import assign_buckets
from fedpeft.config.model import SecureAggregation
from fedpeft.config.task import Task
from fedpeft.ids import BlockId
from fedpeft.privacy import CLIP_BIT, NOISED_METRICS
from fedpeft.round.linking import MEASURED
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TASK_METRICS, TRAIN_LOSS
from fedpeft.round.plan import ExampleTerms
from fedpeft.round.ring_range import ring_range
from fedpeft.round.terms import participants_of, round_terms
from fedpeft.round.work import work_terms
from fedpeft.tasks import TASKS
from fedpeft.testing.fleet import enrol
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec

TEXT = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
SPEC = toy_spec({"head": 4, "lora.B.t4": 6})
LORA = BlockId("lora.B.t4")
PRIVATE = ExampleTerms(epsilon=3.0, delta=1e-3, l2_clip_norm=1.0, noise_multiplier=None, steps=12)


def range_by_the_document(*, rate: float, steps: int, factor: float) -> float:
    q = 0.81 / 0.999
    reach = sum(
        (0.1 / (1 - 0.9**t)) * math.sqrt((1 - 0.999**t) / 0.001 * (1 - q**t) / (1 - q)) for t in range(1, steps + 1)
    )
    bound = 2.0**-24
    while bound < 4 and bound < 2 * reach * rate * factor * (1 - 1e-9):
        bound *= 2
    return bound


def factor_by_the_document(r: int, *, warmup: int, rounds: int, decay: str) -> float:
    if r <= warmup:
        return r / (warmup + 1)
    d = (r - 1 - warmup) / max(1, rounds - warmup)
    return {"constant": 1.0, "linear": 1 - d, "cosine": (1 + math.cos(math.pi * d)) / 2}[decay]


@settings(max_examples=60)
@given(
    rate=st.floats(1e-6, 0.5),
    steps=st.integers(1, 400),
    round_id=st.integers(1, 100),
    warmup=st.integers(0, 20),
    decay=st.sampled_from(["constant", "linear", "cosine"]),
    devices=st.integers(3, 300),
    weight=st.sampled_from(["uniform", "examples"]),
)
def test_the_range_and_width_of_a_block_are_those_of_the_document(
    rate: float, steps: int, round_id: int, warmup: int, decay: str, devices: int, weight: str
) -> None:
    plan = toy_plan(SPEC, secagg=SecureAggregation(bits="auto"))
    plan = plan.model_copy(update={"aggregate": plan.aggregate.model_copy(update={"weight": weight})})
    changes = {"learning_rate": rate, "local_steps": steps, "warmup_rounds": warmup, "decay": decay}
    plan = plan.model_copy(update={"train": plan.train.model_copy(update=changes)})
    factor = factor_by_the_document(round_id, warmup=warmup, rounds=plan.rounds.count, decay=decay)
    found = ring_range(plan, SPEC, LORA, round_id=round_id, devices=devices)
    assert found.max_abs == range_by_the_document(rate=rate, steps=steps, factor=factor)
    assert found.bits == (16 if weight == "uniform" and (2**16 - 1) // (2 * devices) >= 255 else 32)


def test_buckets_are_drawn_as_the_document_says() -> None:
    names, count, seed, round_id = [f"d{i}" for i in range(11)], 3, 5, 12
    hashed = hashlib.sha256(b"fedpeft/1 seed" + seed.to_bytes(8, "little"))
    for label in ("buckets", str(round_id)):
        hashed.update(len(label).to_bytes(8, "little") + label.encode())
    s = int.from_bytes(hashed.digest()[:8], "little") >> 1
    order = np.random.Generator(np.random.Philox(s)).permutation(len(names))
    expected = {names[place]: 1 + i % count for i, place in enumerate(order)}
    assert assign_buckets(names, count, seed=seed, round_id=round_id) == expected


def terms_of(
    task: Task, *, rule: str = "nested", private: bool = False
) -> list[tuple[str, list[tuple[int, float]], int]]:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, 0)}) for i in range(4)})
    plan = toy_plan(SPEC)
    changes = {"task": task, "aggregate": plan.aggregate.model_copy(update={"rule": rule})}
    plan = plan.model_copy(update=changes | ({"privacy": PRIVATE} if private else {}))
    made = round_terms(
        plan,
        SPEC,
        participants_of(fleet.members()),
        work_terms(plan, SPEC, 1, state=bytes(32)),
        round_id=1,
        attempt=1,
        stage_deadline_s=1.0,
        history=bytes(32),
    )
    return [(str(b.block_id), [(one.length, one.max_abs) for one in b.ranges], b.bits) for b in made.blocks]


PAIR = Task(kind="classify", labels=("no", "yes"))
LANES = {
    "one class": (PAIR, [(4, 1.0)]),
    "label sets": (Task(kind="multi-label", labels=("a", "b", "c")), [(9, 1.0)]),
    "a number": (
        Task(kind="regression", range=(0, 5)),
        [(1, 1.0), (1, 1.0), (1, 2.0), (1, 1.0), (1, 4.0), (1, 2.0), (625, 1.0)],
    ),
    "preferences": (Task(kind="preference"), [(2, 32.0), (2, 1.0)]),
    "vectors of texts": (Task(kind="embeddings"), [(1, 1.0), (2, 1.0)]),
    "tags": (Task(kind="token-classify", labels=("O", "B-a", "I-a", "B-b")), [(6, 64.0)]),
}


@pytest.mark.parametrize("name", LANES)
def test_the_lanes_of_a_task_are_those_of_the_document(name: str) -> None:
    task, lanes = LANES[name]
    measured = terms_of(task)[-3:]
    assert measured == [(METRICS, [(1, 8.0), (1, 1.0)], 64), (TASK_METRICS, lanes, 64), (TRAIN_LOSS, [(1, 8.0)], 64)]


def test_the_other_measured_blocks_are_there_when_the_document_says_so() -> None:
    many = Task(kind="classify", labels=tuple(f"c{i}" for i in range(31)))
    assert [name for name, _, _ in terms_of(many)[-2:]] == [METRICS, TRAIN_LOSS]
    weighed = terms_of(PAIR, rule="hetlora")
    assert weighed[-4:][0] == (COHORT_WEIGHT, [(1, 1.0)], 64)
    private = terms_of(PAIR, private=True)
    assert [name for name, _, _ in private] == ["head", "lora.B.t4", TRAIN_LOSS]


def test_every_block_that_the_code_measures_is_in_the_document() -> None:
    """Of each a row of the table of measured blocks; those of client-level privacy in the text."""
    assert len(MEASURED) >= 7
    assert [name for name in sorted(MEASURED) if f"`{name}`" not in TEXT] == []
    rows = set(re.findall(r"^\| `([\w-]+)` \|", TEXT.split("### The blocks of a round")[1], re.MULTILINE))
    assert rows >= MEASURED - {CLIP_BIT, NOISED_METRICS}


def test_every_task_with_a_measure_has_lanes_in_the_document() -> None:
    """A task whose lanes are not written down cannot be proposed by an outsider."""
    kinds = {task.kind for task, _ in LANES.values()}
    options = {
        "classify": {"labels": ("a", "b")},
        "multi-label": {"labels": ("a", "b")},
        "regression": {"range": (0, 1)},
    }
    options["token-classify"] = {"labels": ("O", "B-a")}
    measured = {kind for kind in TASKS if Task(kind=kind, **options.get(kind, {})).measure is not None}
    assert measured == kinds
