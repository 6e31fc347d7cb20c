"""The models that transformers has for a base: with a class for a text, or with the text that follows one.

Their names are those of the entries in a base's manifest (``fedpeft.base.manifest``), so they never change. Several
tasks may share a form.
"""

from collections.abc import Mapping
from typing import Final, Literal

__all__ = ["FORM_OF", "PEFT_TASK_TYPES", "SEQUENCE", "TEXT", "Form"]

Form = Literal["classify", "causal-lm"]

SEQUENCE: Final = "classify"
"""``*ForSequenceClassification``: one row of outputs a text."""

TEXT: Final = "causal-lm"
"""``*ForCausalLM``: one row of outputs a token, over the vocabulary; adds no parameter to the base."""

PEFT_TASK_TYPES: Mapping[Form, str] = {SEQUENCE: "SEQ_CLS", TEXT: "CAUSAL_LM"}
"""How peft calls them in adapter_config.json."""

FORM_OF: Mapping[str, Form] = {kind: form for form, kind in PEFT_TASK_TYPES.items()}
"""The inverse."""
