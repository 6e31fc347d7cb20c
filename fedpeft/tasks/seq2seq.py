"""A target text for a source text, by an encoder-decoder: summaries, translations, descriptions of data."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import SEQ2SEQ
from fedpeft.tasks.generated import GENERATED
from fedpeft.tasks.record import Target, TaskRecord

__all__ = ["TASK"]

TASK = TaskRecord(
    name="seq2seq",
    help="a target text for a source text, by an encoder-decoder",
    form=SEQ2SEQ,
    conventions=(Convention.SOURCE_TARGET, Convention.PROMPT_COMPLETION),
    target=Target.TARGET_TEXT,
    named_outputs=False,
    counted="tokens",
    generates=True,
    metrics=("loss", "accuracy", *GENERATED),
    best="loss",
    compared="perplexity",
)
