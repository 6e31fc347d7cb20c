"""The models that transformers has for a base: outputs for a text, for each of its tokens, or the text that follows.

Their names are those of the entries in a base's manifest (``fedpeft.base.manifest``), so they never change. Several
tasks may share a form. ``TAGS`` is in no manifest: what it adds to a base follows from the architecture, so bases that
were built before it serve it too. ``STATES`` is in none either: it is a base without anything on top.
"""

from collections.abc import Collection, Mapping
from typing import Final, Literal

__all__ = [
    "FORM_OF",
    "MULTI",
    "NUMBER",
    "PEFT_TASK_TYPES",
    "SEQ2SEQ",
    "SEQUENCE",
    "SINGLE",
    "STATES",
    "TAGS",
    "TEXT",
    "Form",
    "served",
    "without_head",
    "without_names",
]

Form = Literal["classify", "causal-lm", "token-classify", "seq2seq", "embeddings"]

SEQUENCE: Final = "classify"
"""``*ForSequenceClassification``: one row of outputs a text."""

TEXT: Final = "causal-lm"
"""``*ForCausalLM``: one row of outputs a token, over the vocabulary; adds no parameter to the base."""

TAGS: Final = "token-classify"
"""``*ForTokenClassification``: one row of outputs a token."""

SEQ2SEQ: Final = "seq2seq"
"""``*ForConditionalGeneration``, an encoder and a decoder that attends to it: one row of outputs a target token, over
the vocabulary; adds no parameter to the base."""

STATES: Final = "embeddings"
"""``AutoModel``, the base without a head: the last layer's states of each token."""

PEFT_TASK_TYPES: Mapping[Form, str] = {
    SEQUENCE: "SEQ_CLS",
    TEXT: "CAUSAL_LM",
    TAGS: "TOKEN_CLS",
    SEQ2SEQ: "SEQ_2_SEQ_LM",
    STATES: "FEATURE_EXTRACTION",
}
"""How peft calls them in adapter_config.json."""

SINGLE: Final = "single_label_classification"
MULTI: Final = "multi_label_classification"
NUMBER: Final = "regression"
"""transformers' names (``problem_type``) of what a ``SEQUENCE`` model learns: which loss it has."""


def without_head(listed: Collection[Form]) -> Form:
    """The form of a base, by those that its manifest lists, to which no task adds parameters."""
    return SEQ2SEQ if SEQ2SEQ in listed else TEXT


def without_names(form: Form) -> bool:
    """Whether a model of this form has no outputs of a task's own, which would need names."""
    return form in (TEXT, SEQ2SEQ, STATES)


FORM_OF: Mapping[str, Form] = {kind: form for form, kind in PEFT_TASK_TYPES.items()}
"""The inverse."""


def served(listed: Collection[Form]) -> tuple[Form, ...]:
    """The forms of a base whose manifest lists these; whether transformers has a class for tags shows on loading."""
    one_stack = SEQUENCE in listed or TEXT in listed
    return (*listed, *((TAGS,) if SEQUENCE in listed else ()), *((STATES,) if one_stack else ()))
