"""How far an exported adapter is, on the weights as published, from the model that was trained on quantized ones.

An adapter learns to correct the base that it sees. Trained over NF4 and served over the original weights it is another
model, by about the quantization's error; the figure says how much of the adapter's own effect that is.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fedpeft.base import BaseArtifact, load_model
from fedpeft.base.architecture import has_two_stacks, values_of
from fedpeft.base.source import read_json
from fedpeft.entropy import generator
from fedpeft.errors import ConfigInvalid
from fedpeft.tasks.form import FORM_OF, NUMBER, Form

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["Moved", "moved_by_the_original_weights"]

SEQUENCES, TOKENS = 4, 16
HEAD = re.compile(r"\.(classifier|score)(\.out_proj)?\.weight$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Largest differences of logits, over a few sequences of random tokens.

    Args:
        adapter_on_original: of the adapter on the original weights from the model that was trained.
        effect: of the trained model from its base alone: what the adapter does at all.
    """

    adapter_on_original: float
    effect: float


@torch.no_grad()
def moved_by_the_original_weights(folder: Path, trained: BaseArtifact, original: BaseArtifact) -> Moved:
    """Load the PEFT files of ``folder`` on both bases and compare.

    Args:
        trained: the base that the adapter was trained on.
        original: the same model with ``quantize="none"``.
    Raises:
        ConfigInvalid: ``original`` is another model.
    """
    labels, form = _classes(folder), _form(folder)
    if trained.manifest.source.digest != original.manifest.source.digest:
        raise ConfigInvalid(
            f"Expected the original weights of {trained.manifest.source.origin} ({trained.digest}), found others: "
            f"{original.manifest.source.origin}; name what that base was built from."
        )
    rows = generator(0, "original weights").integers(1, _rows(trained), (SEQUENCES, TOKENS))
    ids = torch.from_numpy(rows)
    after = _logits(_with_adapter(folder, trained, form, labels), ids)
    before = _logits(_base(trained, form, labels), ids)
    other = _logits(_with_adapter(folder, original, form, labels), ids)
    return Moved(adapter_on_original=float((other - after).abs().max()), effect=float((after - before).abs().max()))


def _classes(folder: Path) -> int:
    """Classes of the head in the PEFT files; 0: a language model."""
    with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
        heads = [name for name in file.keys() if HEAD.search(name)]  # noqa: SIM118 - not a mapping
        return int(file.get_slice(sorted(heads)[-1]).get_shape()[0]) if heads else 0


def _form(folder: Path) -> Form:
    """Of the model that the PEFT files are for."""
    return FORM_OF[str(read_json(folder / "adapter_config.json")["task_type"])]


def _rows(artifact: BaseArtifact) -> int:
    from fedpeft.base import facts_of

    return facts_of(artifact).tokenizer.largest_id


def _base(artifact: BaseArtifact, form: Form, labels: int) -> nn.Module:
    return load_model(
        artifact,
        task=form,
        labels=tuple(str(number) for number in range(labels)),
        head_seed=0,
        problem_type=NUMBER if labels == 1 else "",
    )


def _with_adapter(folder: Path, artifact: BaseArtifact, form: Form, labels: int) -> "PeftModel":
    from peft import PeftModel

    model: PeftModel = PeftModel.from_pretrained(_base(artifact, form, labels), folder).eval()
    return model


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    target = {"decoder_input_ids": ids.flip(1)} if has_two_stacks(model) else {}
    return values_of(model(input_ids=ids, attention_mask=torch.ones_like(ids), **target))
