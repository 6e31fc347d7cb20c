"""What a model of the zoo must do with adapters: be loaded by plain peft, and compute in stages what it does whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedpeft.base import BaseArtifact, load_model
from fedpeft.base.architecture import has_two_stacks, quiet_transformers, skeleton
from fedpeft.base.artifact import TaskName
from fedpeft.config.model import Adapter
from fedpeft.data import EncodedDataset
from fedpeft.entropy import generator
from fedpeft.export import export_peft
from fedpeft.methods.union import UnionAdapter, attach
from fedpeft.tasks.form import SEQ2SEQ, SEQUENCE, TEXT
from fedpeft.testing.zoo import ROWS, transformers_model
from fedpeft.tuning.batches import collate
from fedpeft.tuning.split_forward import SplitForward

__all__ = ["Apart", "attached", "model_on_meta", "peft_apart", "stages_apart"]

CLASSES = ("bad", "good")


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far two models are apart.

    Args:
        difference: largest, of logits.
        size: largest logit.
        moved: how far the adapter moved the base's logits: a check of an adapter that does nothing says nothing.
    """

    difference: float
    size: float
    moved: float

    @property
    def exact(self) -> bool:
        """Whether they compute the same, up to the order of float32 sums, and something."""
        return self.difference <= 2e-5 * max(1.0, self.size) and self.moved > 1e-4


def model_on_meta(name: str) -> nn.Module:
    """The model of one row without weights."""
    row = ROWS[name]
    settings = {"vocab_size": 128_512, "pad_token_id": 0, **row["config"]}
    with quiet_transformers():
        config = AutoConfig.for_model(row["model_type"], **settings)
    forms: dict[str, TaskName] = {"mlm": SEQUENCE, "s2s": SEQ2SEQ}
    return skeleton(config, forms.get(row["kind"], TEXT))


def attached(artifact: BaseArtifact, task: TaskName, adapter: Adapter) -> UnionAdapter:
    """The base with an adapter whose every trained value was moved away from its start."""
    labels = CLASSES if task == SEQUENCE else ()
    union = attach(load_model(artifact, task=task, labels=labels, head_seed=1), adapter, seed=3)
    draw, start = generator(5, "zoo"), union.initial_state()
    moves = {
        block.block_id: (start[block.block_id] + 0.05 * draw.standard_normal(block.size)).astype(np.float32)
        for block in union.spec.blocks
        if block.trainable
    }
    union.load(start.replace(moves))
    return union


def peft_apart(union: UnionAdapter, directory: Path, task: TaskName, folder: Path) -> Apart:
    """Export, load with peft on what transformers loads from the published ``directory``, and compare.

    Of a multimodal wrapper that is its language model: the adapter has that one's names.
    """
    from peft import PeftModel

    summary = export_peft(union, folder, base=str(directory))
    if summary.peft_lacks:
        raise ValueError(f"Expected one PEFT directory for the adapter, found it without {summary.peft_lacks}.")
    with quiet_transformers():
        plain = _language_model(transformers_model(directory, task, {}, union.model.config.pad_token_id))  # type: ignore[union-attr, arg-type]
        inputs = _inputs(union.model, plain)
        base = _logits(plain, inputs, task)
        theirs = _logits(PeftModel.from_pretrained(plain, folder).eval(), inputs, task)
    return _apart(_logits(union.model, inputs, task), theirs, base)


def _language_model(model: nn.Module) -> nn.Module:
    """What transformers itself makes of a wrapper's text settings, with the wrapper's values; others as they are."""
    config: Any = model.config
    if config.get_text_config() is config:
        return model
    inner: nn.Module = AutoModelForCausalLM.from_config(config.get_text_config()).eval()
    held = {key.replace("language_model.", ""): value for key, value in model.state_dict().items()}
    held = {key if key.startswith("lm_head") else f"model.{key.removeprefix('model.')}": held[key] for key in held}
    inner.load_state_dict({key: held[key] for key in inner.state_dict()})
    return inner


def stages_apart(union: UnionAdapter) -> Apart:
    """The training loop's forward passes, whole and cut at the lowest adapted layer, and the model's own."""
    examples = _examples(union)
    stages = SplitForward(union)
    batch = collate(examples, np.arange(len(examples.labels)), pad_id=stages.pad_id, device=stages.device)
    with torch.no_grad():
        whole, _ = stages.logits(batch)
        if has_two_stacks(union.model):
            ids, labels = batch.input_ids, batch.labels
            # Written out: the source is the first four tokens, and transformers shifts the target by itself.
            target = labels[:, 4:].contiguous()
            own = union.model(input_ids=ids[:, :4], labels=target, use_cache=False).logits[target != -100]
        else:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            own = union.model(**inputs, use_cache=False).logits
        if batch.labels.dim() > 1 and not has_two_stacks(union.model):
            following = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=-100)
            own = own[following != -100]
        difference = float((whole - own).abs().max())
        if stages.can_cut:
            above, _ = stages.logits_above(batch, stages.hidden_below(batch))
            difference = max(difference, float((above - own).abs().max()))
    return Apart(difference=difference, size=float(own.abs().max()), moved=1.0)


def _examples(union: UnionAdapter) -> EncodedDataset:
    draw = generator(2, "zoo examples")
    vocabulary = int(union.model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    ids = tuple(draw.integers(5, vocabulary, size).astype(np.int32) for size in (40, 29, 33))
    if union.anatomy.head:
        return EncodedDataset(input_ids=ids, labels=np.array([0, 1, 0], np.int64), truncated=0)
    labels = tuple(np.where(np.arange(len(row)) < 4, -100, row).astype(np.int64) for row in ids)
    return EncodedDataset(input_ids=ids, labels=labels, truncated=0)


def _inputs(*models: nn.Module) -> Mapping[str, Tensor]:
    """Two sentences longer than any window, one of them padded."""
    vocabulary = min(int(model.config.get_text_config().vocab_size) for model in models)  # type: ignore[union-attr, operator]
    ids = torch.randint(5, vocabulary, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _logits(model: nn.Module, inputs: Mapping[str, Tensor], task: TaskName) -> Tensor:
    target = {"decoder_input_ids": inputs["input_ids"].flip(0)} if task == SEQ2SEQ else {}
    logits: Tensor = model(**inputs, **target).logits
    return logits[inputs["attention_mask"].bool()] if task == TEXT else logits


def _apart(ours: Tensor, theirs: Tensor, base: Tensor) -> Apart:
    return Apart(
        difference=float((ours - theirs).abs().max()),
        size=float(theirs.abs().max()),
        moved=float((theirs - base).abs().max()),
    )
