"""Any model: every architecture of the zoo takes LoRA, plain peft loads it, and the stages compute what the model does.

A tenth of the zoo runs in `make test`, all of it in `make slow`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from fedpeft.base import BaseArtifact, load_model  # noqa: E402
from fedpeft.config.model import Adapter, Lora  # noqa: E402
from fedpeft.errors import ConfigInvalid  # noqa: E402
from fedpeft.grafting.anatomy import dissect  # noqa: E402
from fedpeft.methods.union import attach  # noqa: E402
from fedpeft.planner import shape_of  # noqa: E402
from fedpeft.planner.placement import spec_of  # noqa: E402
from fedpeft.testing.zoo import NAMES, ROWS, SAMPLE  # noqa: E402
from fedpeft.testing.zoo_methods import attached, peft_apart, stages_apart  # noqa: E402

pytestmark = pytest.mark.torch
SERVED = [name for name in NAMES if ROWS[name]["kind"] in ("lm", "mlm", "s2s")]
ZOO = [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in SERVED]
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
LORA = Adapter.having(Lora(rank=4))
# peft reads a shared expert's matrices as those of the experts: such an adapter stays in union.safetensors.
NOT_IN_PEFT = {"qwen2_moe", "qwen3_next", "deepseek_v3", "glm4_moe"}


@pytest.mark.parametrize("name", ZOO)
def test_plain_peft_on_transformers_own_model_computes_what_was_trained(zoo: Zoo, tmp_path: Path, name: str):
    directory, artifact = zoo(name)
    for task in artifact.manifest.tasks:
        union = attached(artifact, task, LORA)
        assert peft_apart(union, directory, task, tmp_path / "auto").exact, task
        slots = [slot for slot in union.anatomy.layout.slots if name not in NOT_IN_PEFT or slot in "qkvo"]
        if slots:  # Mamba has none
            every = attached(artifact, task, Adapter.having(Lora(rank=4, targets=tuple(slots))))
            assert peft_apart(every, directory, task, tmp_path / "slots").exact, task


@pytest.mark.parametrize("name", ZOO)
def test_the_forward_pass_in_stages_is_that_of_the_model(zoo: Zoo, name: str):
    artifact = zoo(name)[1]
    for task in artifact.manifest.tasks:
        model = load_model(artifact, task=task, labels=("a", "b") if task == "classify" else (), head_seed=0)
        top = len(dissect(model, "all").layout) - 1
        having = [i for i in range(top + 1) if dissect(model, "all").layout.select(i, "auto")]
        adapter = LORA if not having else Adapter.having(Lora(rank=4, layers=(max(having), top)))
        assert stages_apart(attached(artifact, task, adapter)).exact, task


@pytest.mark.parametrize("name", ZOO)
def test_the_planner_counts_the_blocks_that_the_model_gets(zoo: Zoo, name: str):
    artifact = zoo(name)[1]
    for task in artifact.manifest.tasks:
        counted = spec_of(shape_of(artifact), LORA, classes=2 if task == "classify" else 0)
        real = attached(artifact, task, LORA).spec
        assert {b.block_id: b.size for b in counted.blocks} == {b.block_id: b.size for b in real.blocks}


@pytest.mark.parametrize("name", ZOO)
def test_a_language_model_sees_nothing_of_what_follows(zoo: Zoo, name: str):
    artifact = zoo(name)[1]
    if "causal-lm" not in artifact.manifest.tasks:
        return
    model = load_model(artifact, task="causal-lm", head_seed=0)
    ids = torch.randint(5, 250, (1, 24), generator=torch.Generator().manual_seed(2))
    other = torch.cat((ids[:, :20], (ids[:, 20:] + 1) % 250), dim=1)
    with torch.no_grad():
        first, second = (model(input_ids=one).logits[:, :20] for one in (ids, other))
    assert torch.allclose(first, second, atol=1e-4)
    assert dissect(model, "all").causal


def test_a_matrix_that_the_layers_lack_is_refused_with_their_modules_and_what_to_write(zoo: Zoo):
    artifact = zoo("mamba")[1]
    model = load_model(artifact, task="causal-lm", head_seed=0)
    with pytest.raises(ConfigInvalid, match=r"(?s)mixer\.in_proj.*\[adapter\.slots\] q = "):
        attach(model, Adapter.having(Lora(rank=2, targets=("q",))), seed=0)
    named = Adapter.having(Lora(rank=2, targets=("q",)), slots={"q": "in_proj"})
    union = attach(load_model(artifact, task="causal-lm", head_seed=0), named, seed=0)
    assert all("mixer.in_proj" in tensor.name for block in union.spec.blocks for tensor in block.tensors)


def test_layers_without_a_target_are_passed_over_and_none_with_one_is_refused(zoo: Zoo):
    artifact = zoo("lfm2")[1]
    model = load_model(artifact, task="causal-lm", head_seed=0)
    with pytest.raises(ConfigInvalid, match=r"adapter\.lora in the chosen layers"):
        attach(model, Adapter.having(Lora(rank=2), layers=1), seed=0)
