"""The model card (README.md) of an exported adapter."""

from fedpeft.export.summary import ExportSummary

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
{lacks}{quantized}
## Load it

```python
{code}
```
"""

_WITH_PEFT = """from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("<the base model>"{labels})
model = PeftModel.from_pretrained(base, "<this directory>")"""

_WITH_UNION = """from pathlib import Path
from fedpeft.export import load_union

union = load_union(base, Path("<this directory>"))  # base: the transformers model of the base
model = union.model"""


def model_card(summary: ExportSummary, *, task_type: str) -> str:
    """The card's text. Names the base and the blocks; holds no path and nothing about the data."""
    classify = task_type == "SEQ_CLS"
    auto = "AutoModelForSequenceClassification" if classify else "AutoModelForCausalLM"
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
    with_peft = _WITH_PEFT.format(auto=auto, labels=", num_labels=..." if classify else "")
    on_hub = "/" in summary.base and ":" not in summary.base
    return _CARD.format(
        base_line=f"base_model: {summary.base}\n" if on_hub else "",
        tag="text-classification" if classify else "text-generation",
        base=summary.base,
        digest=f" (artifact `{summary.base_digest}`)" if summary.base_digest else "",
        parameters=summary.parameters,
        peft_type=summary.peft_type,
        held=", ".join(summary.peft_blocks),
        lacks=lacks,
        quantized=quantized,
        code=_WITH_UNION if summary.peft_lacks else with_peft,
    )
