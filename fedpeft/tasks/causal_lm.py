"""The text that follows another: every language model's own task."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import TEXT
from fedpeft.tasks.generated import GENERATED
from fedpeft.tasks.record import Target, TaskRecord

__all__ = ["TASK"]

TASK = TaskRecord(
    name="causal-lm",
    help="the text that follows one",
    form=TEXT,
    conventions=(Convention.MESSAGES, Convention.PROMPT_COMPLETION, Convention.ALPACA, Convention.TEXT),
    target=Target.NEXT_TOKEN,
    named_outputs=False,
    counted="tokens",
    generates=True,
    metrics=("loss", "accuracy", *GENERATED),
    best="loss",
    compared="perplexity",
)
