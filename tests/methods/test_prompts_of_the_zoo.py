"""Rows before a text change what a model computes, to what peft computes with them."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from peft import PromptTuningConfig, get_peft_model

from fedpeft.base import BaseArtifact, load_model
from fedpeft.base.artifact import TaskName
from fedpeft.config.model import Adapter
from fedpeft.errors import ConfigInvalid
from fedpeft.methods import attach
from fedpeft.methods.prompt import prompts_of
from fedpeft.methods.union import UnionAdapter
from fedpeft.tasks.form import TEXT
from fedpeft.testing.zoo import ROWS
from fedpeft.testing.zoo_methods import attached, peft_apart, stages_apart

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
IDS = torch.arange(24).reshape(2, 12) + 5
REFUSED = ("llama4_text", "gemma4_text", "gemma3n_text")
"""Without one backbone that takes embeddings for ids: Gemma 3n takes them, and computes something else."""
METHODS = ("prompt", "p_tuning", "p_tuning_v2", "prefix")
REASONS = ("takes rows before", "one backbone under", "matrix of keys", "can be replaced", "no such matrix")
KINDS = ("xlnet", "bart", "gemma3n_text", "eurobert", "longformer", "gemma4_text", "m2m_100", "deepseek_v2")
"""What ended in a foreign error in the forward pass, or was refused for -1 positions."""
EXACT = ("bert", "xlnet", "bart", "mbart", "m2m_100", "marian", "pegasus", "blenderbot")
"""peft takes them, and its logits are of the text alone: it must compute the same."""


@pytest.mark.drawn(3, always=lambda name, **_: name in ("opt", "gpt2", "llama"))
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row["kind"] == "lm" and name not in REFUSED])
def test_a_prompt_is_before_every_text(name: str, zoo: Zoo) -> None:
    _, artifact = zoo(name)
    model, same = (load_model(artifact, task=TEXT, labels=(), head_seed=0) for _ in range(2))
    with torch.no_grad():
        before = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        union = attach(model, Adapter.model_validate({"prompt": {"length": 4}}), seed=0)
        after = union.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert after.shape == before.shape
    assert not torch.allclose(after, before, atol=1e-4)
    if name not in ("opt", "gpt2", "llama"):
        return
    theirs = get_peft_model(same, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(prompts_of(union.model)["prompt"].made())
        assert torch.allclose(theirs(input_ids=IDS).logits[:, 4:], after, atol=1e-4)


def _taken(artifact: BaseArtifact, task: TaskName, method: str) -> UnionAdapter | None:
    """The adapter with moved values; None: refused for a known reason."""
    try:
        return attached(artifact, task, Adapter.model_validate({method: {"length": 4}}))
    except ConfigInvalid as refused:
        why = str(refused)
    if not any(reason in why for reason in REASONS):
        pytest.fail(f"refused without a known reason: {why}")
    return None


@pytest.mark.drawn(4, always=lambda name, **_: name in KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_rows_change_the_output_or_are_refused_at_attach(name: str, zoo: Zoo, tmp_path: Path) -> None:
    directory, artifact = zoo(name)
    ids = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    for task in artifact.manifest.tasks:
        labels = ("bad", "good") if task == "classify" else ()
        given = {**ids, "decoder_input_ids": IDS} if task == "seq2seq" else ids
        with torch.no_grad():
            before = load_model(artifact, task=task, labels=labels, head_seed=1)(**given).logits
        for method in METHODS:
            if (union := _taken(artifact, task, method)) is None:
                assert name not in EXACT or method not in ("prompt", "p_tuning"), (task, method)
                continue
            with torch.no_grad():
                after = union.model(**given).logits
            assert after.shape == before.shape, (task, method)
            assert not torch.allclose(after, before, atol=1e-4), (task, method)
            assert stages_apart(union).exact, (task, method)
            if name in EXACT and method in ("prompt", "p_tuning"):
                assert peft_apart(union, directory, task, tmp_path / method).exact, method


@pytest.mark.parametrize(
    ("name", "method", "why"),
    [
        ("eurobert", "prompt", "mean over the text"),
        ("longformer", "p_tuning", "global attention"),
        ("gemma4_text", "prompt", "in each layer again"),
        ("gemma3n_text", "prompt", "in each layer again"),
        ("led", "p_tuning", "global attention"),
        ("deepseek_v2", "prefix", "kv_lora_rank"),
        ("minicpm3", "p_tuning_v2", "kv_lora_rank"),
    ],
)
def test_a_model_that_takes_no_rows_is_refused_with_the_reason(name: str, method: str, why: str, zoo: Zoo) -> None:
    _, artifact = zoo(name)
    with pytest.raises(ConfigInvalid, match=why):
        attached(artifact, next(iter(artifact.manifest.tasks)), Adapter.model_validate({method: {"length": 4}}))
