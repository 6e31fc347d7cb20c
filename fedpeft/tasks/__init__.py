"""The tasks, one light file each: columns, model, target, metrics. No torch.

To add one: its file here and its place in ``TASKS`` and ``Kind``; a new ``Target`` needs its encoding in
``fedpeft/data/encode.py`` and its loss in ``fedpeft/tuning`` (docs/adr/0025-tasks.md). Everything else reads the
record; tests/tasks/test_contract.py holds each against what encodes and trains it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from fedpeft.tasks import causal_lm, classify, embeddings, multi_label, preference, regression, seq2seq, token_classify
from fedpeft.tasks.conventions import KNOWN_COLUMNS, READ_COLUMNS, Convention
from fedpeft.tasks.measure import Measure
from fedpeft.tasks.record import Target, TaskRecord

__all__ = [
    "KNOWN_COLUMNS",
    "METRICS",
    "READ_COLUMNS",
    "TASKS",
    "Convention",
    "Kind",
    "Measure",
    "Metric",
    "Target",
    "TaskRecord",
    "task_of",
]

Kind = Literal[
    "classify", "causal-lm", "regression", "multi-label", "token-classify", "seq2seq", "preference", "embeddings"
]

TASKS: Mapping[str, TaskRecord] = MappingProxyType(
    {
        record.name: record
        for record in (
            classify.TASK,
            causal_lm.TASK,
            regression.TASK,
            multi_label.TASK,
            token_classify.TASK,
            seq2seq.TASK,
            preference.TASK,
            embeddings.TASK,
        )
    }
)
"""By name, in the order in which columns are asked whose they are."""

Metric = Literal[
    "auto", "loss", "accuracy", "f1_macro", "f1_micro", "pearson", "spearman", "entity_f1", "margin", "recall_at_1",
    "rouge_l", "exact_match",
]  # fmt: skip
"""What may choose the best state; ``auto``: the task's own."""

METRICS = frozenset(metric for record in TASKS.values() for metric in record.metrics)


def task_of(convention: Convention) -> TaskRecord:
    """The first task that these columns are for."""
    return next(record for record in TASKS.values() if convention in record.conventions)
