"""The model card (README.md) of an exported adapter."""

from collections.abc import Mapping

from fedpeft.export.summary import ExportSummary
from fedpeft.tasks import TASKS
from fedpeft.tasks.form import FORM_OF, MULTI, NUMBER, SEQ2SEQ, SEQUENCE, SINGLE, STATES, TAGS, TEXT, Form

__all__ = ["model_card"]

_CARD = """---
library_name: peft
{base_line}tags:
- {tag}
- fedpeft
- federated-learning
---

# Adapter for {base}

Trained with fedpeft: the data stayed with its owners, the coordinator saw sums of adapter deltas.

- Base model: `{base}`{digest}
- Adapter parameters: {parameters:,}
- Blocks in the PEFT files ({peft_type}): {held}
{task}{classes}{lacks}{quantized}
## Load it

{export}```python
{code}
```
"""

BASE_FOLDER = "<the base model>"

_EXPORT = """The base as a folder for transformers, with the very weights that the adapter was trained on:
`fedpeft base export {digest} --out "{folder}"`.

"""

_WITH_PEFT = """from peft import PeftModel
from transformers import {auto}, AutoTokenizer

{names}base = {auto}.from_pretrained("{base}"{labels})
model = PeftModel.from_pretrained(base, "<this directory>")
tokenizer = AutoTokenizer.from_pretrained("<this directory>")"""

_NAMES = """names = {names}
"""

_LABELS = ", id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)}"

_WITH_UNION = """from pathlib import Path

from transformers import {auto}

from fedpeft.export import load_union

{names}base = {auto}.from_pretrained("{base}"{labels})
union = load_union(base, Path("<this directory>"))
model = union.model"""


_TOKENIZER = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("<this directory>")"""

_VECTORS = """

import torch

tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # to embed several texts at once
how = dict(padding=True, padding_side="right", truncation=True, max_length={longest}, return_tensors="pt")
inputs = tokenizer(["a text"], **how)
with torch.no_grad():
    states = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
mask = inputs.attention_mask[..., None]
vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))  # compare by their product"""


_OUTPUTS = {NUMBER: "Numbers", MULTI: "Labels, each given where its logit is above 0"}

_MODELS: Mapping[Form, tuple[str, str]] = {
    SEQUENCE: ("AutoModelForSequenceClassification", "text-classification"),
    TAGS: ("AutoModelForTokenClassification", "token-classification"),
    TEXT: ("AutoModelForCausalLM", "text-generation"),
    SEQ2SEQ: ("AutoModelForSeq2SeqLM", "text2text-generation"),
    STATES: ("AutoModel", "sentence-similarity"),
}
"""transformers' class, and the hub's name of what it does."""


def _task(summary: ExportSummary) -> str:
    """What it was trained on: how to write what it is asked with."""
    if summary.task is None:
        return ""
    said = summary.task
    columns = ""
    if name := said.get("convention"):
        own = name in {one.value for one in TASKS[said["kind"]].conventions}
        columns = f", from the columns {name}" if own else f", its prompts written as {name}"
    numbers = ", numbers from {:g} to {:g}".format(*said["range"]) if said.get("range") else ""
    return f"- Task: {said['kind']}{columns}, {said['max_length']} tokens at most{numbers}\n"


def _outputs(summary: ExportSummary) -> str:
    kind = _OUTPUTS.get(summary.problem_type, "Classes")
    return f"- {kind}, in the order of the logits: {', '.join(summary.labels)}\n" if summary.labels else ""


def _labels(summary: ExportSummary) -> str:
    """Arguments of ``from_pretrained`` that name the outputs and the loss."""
    if not summary.labels:
        return ""
    return _LABELS + (f', problem_type="{summary.problem_type}"' if summary.problem_type not in ("", SINGLE) else "")


def model_card(summary: ExportSummary, *, task_type: str) -> str:
    """The card's text. Names the base and the blocks; holds no path and nothing about the data."""
    auto, tag = _MODELS[FORM_OF[task_type]]
    lacks = ""
    if summary.peft_lacks:
        lacks = (
            f"- **Not in the PEFT files**, which are therefore not the model that was trained: "
            f"{', '.join(summary.peft_lacks)}. `union.safetensors` holds everything.\n"
        )
    quantized = ""
    if summary.trained_on_quantized:
        quantized = (
            f"- **Trained on {summary.base_quantize} weights.** On the original weights, or quantized in another way, "
            "logits differ by the error of that quantization: load the base artifact named above for the trained "
            "model itself; `fedpeft adapter inspect --original MODEL` measures the difference.\n"
        )
    on_hub = "/" in summary.base and ":" not in summary.base
    code = (_WITH_UNION if summary.peft_lacks else _WITH_PEFT).format(
        auto=auto,
        base=summary.base if on_hub else BASE_FOLDER,
        names=_NAMES.format(names=list(summary.labels)) if summary.labels else "",
        labels=_labels(summary),
    )
    if FORM_OF[task_type] == STATES:
        cut = (summary.task or {}).get("max_length", 512)
        code += ("" if not summary.peft_lacks else _TOKENIZER) + _VECTORS.format(longest=cut)
    export = _EXPORT.format(digest=summary.base_digest, folder=BASE_FOLDER)
    return _CARD.format(
        base_line=f"base_model: {summary.base}\n" if on_hub else "",
        tag=tag,
        base=summary.base,
        digest=f" (artifact `{summary.base_digest}`)" if summary.base_digest else "",
        parameters=summary.parameters,
        peft_type=summary.peft_type,
        held=", ".join(summary.peft_blocks),
        task=_task(summary),
        classes=_outputs(summary),
        lacks=lacks,
        quantized=quantized,
        export=export if summary.base_digest and not on_hub else "",
        code=code,
    )
