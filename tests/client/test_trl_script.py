"""TRL's SFTTrainer takes a round's steps as fedpeft's own loop does, of texts and of prompts with completions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpeft.config.model import Adapter, Lora, Task
from fedpeft.methods import attach
from fedpeft.testing.models import save_tiny, tiny_llama
from fedpeft.tuning import LocalPlan, train

pytestmark = pytest.mark.torch

TEXTS = [{"text": f"the {'red' if i % 2 else 'blue'} bird {i % 3}"} for i in range(6)]
PROMPTS = [{"prompt": f"the {'red' if i % 2 else 'blue'} bird", "completion": f" {i % 3} a"} for i in range(6)]


@pytest.mark.parametrize("rows", [TEXTS, PROMPTS], ids=["texts", "prompts"])
def test_a_supervised_fine_tuning_script_takes_fedpefts_own_steps(
    tmp_path: Path, rows: list[Mapping[str, Any]]
) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from fedpeft_client.training.transformers_script import TransformersScript
    from tests.client.test_transformers_script import run_plan

    torch.set_num_threads(1)
    save_tiny(tiny_llama(layers=1), tmp_path / "base")
    trainer = SFTTrainer(
        model=str(tmp_path / "base"),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=6,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:2]),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "base"),
    )
    script = TransformersScript(trainer, labels=None, recipe="run")
    adapter = Adapter(lora=Lora(rank=4))
    ours, theirs = (attach(tiny_llama(layers=1), adapter, seed=1) for _ in range(2))
    run = run_plan(task=Task(kind="causal-lm", max_length=32))
    script.expect(run)
    examples, held_out = script.tokens(run)
    assert (len(examples), len(held_out)) == (6, 2)
    plan = LocalPlan(
        steps=3,
        batch_size=6,
        optimizer="adamw",
        learning_rates={block.block_id: 0.01 for block in ours.spec.blocks if block.trainable},
        weight_decay=0.01,
        max_grad_norm=0.5,
    )
    outcome = train(ours, examples, plan, seed=5)
    loss_sum, seen = script.take_steps(theirs, plan, seed=5)
    assert seen == outcome.examples_seen == 18
    assert loss_sum / seen == pytest.approx(outcome.mean_loss, rel=1e-4)
    for block in ours.spec.blocks:
        np.testing.assert_allclose(theirs.state()[block.block_id], ours.state()[block.block_id], atol=2e-5)
