"""An adapter that came over the network is data: what an export writes loads, and nothing else is looked at."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fedpeft.adapter import AdapterState  # noqa: E402
from fedpeft.base import BaseArtifact, build, load_model  # noqa: E402
from fedpeft.catalogue import METHODS  # noqa: E402
from fedpeft.config.adapter import Adapter  # noqa: E402
from fedpeft.config.model import Lora, Task  # noqa: E402
from fedpeft.errors import ConfigInvalid, IntegrityFailed, SpecMismatch  # noqa: E402
from fedpeft.export import export_peft  # noqa: E402
from fedpeft.export.received import SETTINGS, load_received, read_received  # noqa: E402
from fedpeft.methods import UnionAdapter, attach  # noqa: E402
from fedpeft.testing.models import tiny_bert, tiny_llama  # noqa: E402
from fedpeft.testing.zoo import save_model  # noqa: E402

pytestmark = pytest.mark.torch
IDS = torch.tensor([[5, 9, 17, 33, 2], [7, 8, 9, 11, 4]])
LABELS = ("good", "bad", "so so")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseArtifact]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: build(str(save_model(name, folder / name)), quantize="int8", store=folder / "store")
        for name in ("roberta", "llama")
    }


def trained(artifact: BaseArtifact, adapter: Adapter) -> UnionAdapter:
    task = "causal-lm" if artifact.model_type == "llama" else "classify"
    model = load_model(artifact, task=task, labels=LABELS if task == "classify" else (), head_seed=0)
    union = attach(model, adapter, seed=1)
    draw, start = np.random.Generator(np.random.Philox(5)), union.initial_state()
    moved = {
        b.block_id: (start[b.block_id] + 0.2 * draw.standard_normal(b.size)).astype(np.float32)
        for b in start.spec.blocks
        if b.trainable
    }
    union.load(AdapterState(start.spec, {**start.vectors, **moved}))
    return union


@torch.no_grad()
def logits(model: "torch.nn.Module") -> "torch.Tensor":
    found: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


@pytest.mark.parametrize("base", ["roberta", "llama"])
@pytest.mark.parametrize("method", ["lora", "ia3", "bottleneck", "dora"])
def test_what_was_exported_computes_the_same_where_it_is_received(
    bases: dict[str, BaseArtifact], base: str, method: str, tmp_path: Path
) -> None:
    union = trained(bases[base], Adapter.model_validate({method: {}}))
    export_peft(union, tmp_path, base="x", artifact=bases[base])
    assert torch.allclose(logits(load_received(tmp_path, bases[base])), logits(union.model), atol=1e-5)
    assert read_received(tmp_path).labels == (() if base == "llama" else LABELS)


@pytest.mark.parametrize("build_model", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("method", [method.name for method in METHODS if method.section is not None])
def test_every_key_that_an_export_writes_is_taken(method: str, build_model: object, tmp_path: Path) -> None:
    try:
        union = attach(build_model(), Adapter.model_validate({method: {}}), seed=0)  # type: ignore[operator]
    except (ConfigInvalid, ValueError):
        pytest.skip("the method does not suit this model as it is")
    export_peft(union, tmp_path, base="x")
    assert json.loads((tmp_path / "adapter_config.json").read_text()).keys() <= SETTINGS


@pytest.fixture
def folder(bases: dict[str, BaseArtifact], tmp_path: Path) -> Path:
    export_peft(trained(bases["llama"], Adapter(lora=Lora(rank=2))), tmp_path, base="x", artifact=bases["llama"])
    return tmp_path


def changed(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"megatron_config": {}, "megatron_core": "hostile_module"},
        {"auto_mapping": {"base_model_class": "A", "parent_library": "hostile_module"}},
        {"target_modules": "(a+)+$"},
        {"modules_to_save": [1]},
        {"trainable_token_indices": [1]},
    ],
)
def test_settings_that_no_export_writes_are_refused_unused(
    folder: Path, bases: dict[str, BaseArtifact], settings: dict[str, object]
) -> None:
    changed(folder, **settings)
    with pytest.raises(IntegrityFailed):
        load_received(folder, bases["llama"])
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.py", "weights.pt", "x.pkl"])
def test_a_file_that_no_export_has_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(IntegrityFailed, match=name):
        read_received(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"peft_type": 1e999}', "[" * 100_000])
def test_json_beyond_limits_is_refused(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(IntegrityFailed):
        read_received(folder)


def test_an_adapter_of_another_base_is_refused(folder: Path, bases: dict[str, BaseArtifact]) -> None:
    with pytest.raises(SpecMismatch, match=bases["llama"].digest):
        load_received(folder, bases["roberta"])


@pytest.mark.parametrize(
    "task",
    [
        Task(kind="preference", max_length=64, beta=0.25),
        Task(kind="causal-lm", max_length=200),
    ],
)
def test_what_it_was_trained_on_is_said_and_read(bases: dict[str, BaseArtifact], task: Task, tmp_path: Path) -> None:
    union = trained(bases["llama"], Adapter(lora=Lora(rank=2)))
    export_peft(union, tmp_path, base="x", artifact=bases["llama"], task=task, convention="prompt+completion")
    assert read_received(tmp_path).task == task
    card = (tmp_path / "README.md").read_text()
    written = "its prompts written as" if task.kind == "preference" else "from the columns"
    assert f"- Task: {task.kind}, {written} prompt+completion, {task.max_length} tokens at most" in card


def test_the_range_of_a_number_is_said_and_read(bases: dict[str, BaseArtifact], tmp_path: Path) -> None:
    task = Task(kind="regression", range=(0.0, 5.0))
    model = load_model(
        bases["roberta"], task="classify", labels=task.outputs, head_seed=0, problem_type=task.record.problem_type
    )
    union = attach(model, Adapter(lora=Lora(rank=2)), seed=1)
    export_peft(union, tmp_path, base="x", artifact=bases["roberta"], task=task)
    assert read_received(tmp_path).task == task
    assert "numbers from 0 to 5" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "task",
    [
        [],
        "causal-lm",
        {},
        {"kind": "classify"},
        {"kind": "causal-lm", "max_length": 10**9},
        {"kind": "causal-lm", "code": "x"},
        {"kind": "preference", "beta": "0.1"},
    ],
)
def test_a_task_that_is_none_or_of_another_form_is_refused(folder: Path, task: object) -> None:
    path = folder / "inspect.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": task}))
    with pytest.raises(IntegrityFailed, match=r"inspect\.json"):
        read_received(folder)
