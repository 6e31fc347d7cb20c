"""What every method was before the catalogue: adapter digests, [adapter] on the wire, schedules, costs (methods.json).

A run made before a change of these would not resume after it: its devices rebuild the specification and compare
digests. To renew the file on purpose (a new method, or an ADR that says why old runs may break):

    python tests/catalogue/test_golden.py
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fedpeft.catalogue import BY_NAME
from fedpeft.config.model import Adapter

GOLDEN = Path(__file__).with_name("methods.json")
EXAMPLES = {
    "lora": {"rank": 4, "train": "both", "carried_rank": 2},
    "dora": {"rank": 2},
    "adalora": {"rank": 3, "target_rank": 1, "warmup_rounds": 1, "prune_until": 3},
    "dylora": {"rank": 2},
    "relora": {"rank": 1, "cycles": 2, "rounds_each": 2},
    "qalora": {"rank": 1},
    "vera": {"rank": 4},
    "loha": {"rank": 2},
    "lokr": {"rank": 1},
    "diffpruning": {"prune_round": 2},
    "fish": {"keep": 0.01},
    "bitfit": {},
    "layernorm": {},
    "ia3": {},
    "bottleneck": {"width": 4},
    "parallel": {"width": 4},
    "compacter": {"width": 4},
    "hypernetwork": {"width": 4},
    "fusion": {"width": 4},
    "prompt": {"length": 2},
    "p_tuning": {"length": 2, "width": 4},
    "prefix": {"length": 2, "width": 4},
    "p_tuning_v2": {"length": 2},
    "llama_adapter": {"length": 2},
    "unipelt": {"rank": 2, "length": 2, "width": 4},
    "coda": {"width": 4},
    "head": {},
}
ROUNDS = range(1, 6)


def settings_of(method: str) -> dict[str, object]:
    """[adapter] with the method's example alone."""
    return {} if method == "head" else {method: EXAMPLES[method], "head": False}


def cases() -> list[tuple[str, str]]:
    """Every method on every tiny model that takes it."""
    return [
        (method, family)
        for method in EXAMPLES
        for family in ("encoder", "decoder")
        if family == "encoder" or method not in {"bitfit", "head"}
    ]


def on_model(method: str, family: str) -> dict[str, object]:
    """Specification, wire form, due blocks and the coordinator's part of one method on a tiny model."""
    from fedpeft.aggregate import between_rounds
    from fedpeft.config.model import Task, Train
    from fedpeft.methods import attach, due_blocks
    from fedpeft.round.rates import learning_rates
    from fedpeft.testing.models import tiny_bert, tiny_llama
    from fedpeft.testing.trainers import toy_plan

    adapter = Adapter.model_validate_json(json.dumps(settings_of(method)))
    union = attach((tiny_bert if family == "encoder" else tiny_llama)(), adapter, seed=3)
    spec, start = union.spec, union.initial_state()
    draw = np.random.Generator(np.random.Philox(9))
    moved = start.replace(
        {b.block_id: (start[b.block_id] + draw.random(b.size)).astype("f4") for b in spec.blocks if b.trainable}
    )
    kind = "classify" if family == "encoder" else "causal-lm"
    plan = toy_plan(spec).model_copy(update={"adapter": adapter, "train": Train(), "task": Task(kind=kind)})
    after = {r: between_rounds(moved, adapter, r) for r in ROUNDS}
    return {
        "spec": spec.digest,
        "wire": hashlib.sha256(_wire(adapter).encode()).hexdigest(),
        "blocks": {str(b.block_id): b.size for b in spec.blocks},
        "start": {str(b): [float(v.sum()), float(np.linalg.norm(v))] for b, v in start.items()},
        "due": {str(r): sorted(due_blocks(spec, adapter, r)) for r in ROUNDS},
        "between": {
            str(r): {str(b): int(np.count_nonzero(v)) for b, v in state.items() if v.tobytes() != moved[b].tobytes()}
            for r, state in after.items()
        },
        "rates": {str(b): rate for b, rate in learning_rates(plan, spec, list(start)).items()},
    }


def _wire(adapter: Adapter) -> str:
    """[adapter] as it travels, without the methods that the run does not have: a new method adds a null."""
    absent = {name for name, value in adapter if value is None and name != "head_learning_rate"}
    return adapter.model_dump_json(exclude=absent)


def at_defaults(method: str) -> dict[str, object]:
    """What the planner says of the method at its defaults on two real shapes."""
    from fedpeft.planner import DeviceProfile, Workload, estimate
    from fedpeft.planner.placement import present_methods, spec_of
    from fedpeft.testing.shapes import DECODER, MINILM

    profile = DeviceProfile(
        cores=2, gemm_rate=5e10, bandwidth=1e10, total_bytes=2**33, available_bytes=2**32, vram_bytes=0, flags=()
    )
    found: dict[str, object] = {}
    for name, shape, classes in (("encoder", MINILM, 3), ("decoder", DECODER, 0)):
        adapter = Adapter() if method == "head" else Adapter.model_validate({method: {}, "head": False, "layers": 2})
        if method not in {*present_methods(shape, adapter), *(["head"] if classes else [])}:
            continue
        methods = () if method == "head" else (method,)
        work = Workload(adapter=adapter, methods=methods, classes=classes, batch_size=8, head=method == "head")
        cost = estimate(shape, work, profile)
        found[name] = {
            "spec": spec_of(shape, adapter, classes=classes).digest,
            "activation_bytes": cost.activation_bytes,
            "adapter_bytes": cost.adapter_bytes,
            "bytes_up": cost.bytes_up,
            "step_s": cost.step_s,
        }
    return found


def test_every_method_has_its_line():
    assert set(BY_NAME) <= set(EXAMPLES)


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, dict[str, object]]]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.torch
@pytest.mark.parametrize(("method", "family"), cases())
def test_a_run_of_an_earlier_version_finds_its_adapter_again(method, family, golden):
    known, found = golden["models"][f"{method} on {family}"], json.loads(json.dumps(on_model(method, family)))
    for block, (total, norm) in known.pop("start").items():
        assert np.allclose(found["start"][block], (total, norm), rtol=1e-4, atol=1e-3)  # LAPACKs differ in the last bit
    del found["start"]
    assert found == known


@pytest.mark.parametrize("method", EXAMPLES)
def test_the_planner_counts_as_an_earlier_version_did(method, golden):
    found = json.loads(json.dumps(at_defaults(method)))
    for family, known in golden["costs"][method].items():
        assert found[family] == pytest.approx(known)
    assert found.keys() == golden["costs"][method].keys()


if __name__ == "__main__":
    made = {
        "models": {f"{method} on {family}": on_model(method, family) for method, family in cases()},
        "costs": {method: at_defaults(method) for method in EXAMPLES},
    }
    GOLDEN.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
