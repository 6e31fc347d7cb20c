"""Rows before a text change what a model computes, to what peft computes with them."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from peft import PromptTuningConfig, get_peft_model

from fedpeft.base import BaseArtifact, load_model
from fedpeft.config.model import Adapter
from fedpeft.methods import attach
from fedpeft.methods.prompt import prompts_of
from fedpeft.tasks.form import TEXT
from fedpeft.testing.zoo import ROWS

pytestmark = pytest.mark.torch
Zoo = Callable[[str], tuple[Path, BaseArtifact]]
IDS = torch.arange(24).reshape(2, 12) + 5
REFUSED = ("llama4_text", "gemma4_text")
"""Without one backbone that takes embeddings for ids."""


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
