"""One class for a text, or for a pair of texts."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import SEQUENCE, SINGLE
from fedpeft.tasks.measure import MOST_CLASSES, Confusion, Measure
from fedpeft.tasks.record import Range, Target, TaskRecord

__all__ = ["TASK"]


def _measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    return Confusion(outputs) if 2 <= len(outputs) <= MOST_CLASSES else None


TASK = TaskRecord(
    name="classify",
    help="a class for a text or a pair of texts",
    form=SEQUENCE,
    conventions=(Convention.TEXT_PAIR_LABEL, Convention.TEXT_LABEL),
    target=Target.CLASS,
    problem_type=SINGLE,
    named_outputs=True,
    counted="examples",
    measure=_measure,
    metrics=("loss", "accuracy", "f1_macro"),
    best="loss",
    compared="accuracy",
)
