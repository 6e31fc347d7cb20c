"""Any number of labels for a text, or for a pair of texts."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import MULTI, SEQUENCE
from fedpeft.tasks.measure import LabelSets, Measure
from fedpeft.tasks.record import Range, Target, TaskRecord

__all__ = ["TASK"]


def _measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    return LabelSets(outputs)


TASK = TaskRecord(
    name="multi-label",
    help="any number of labels for a text or a pair of texts",
    form=SEQUENCE,
    conventions=(Convention.TEXT_PAIR_LABEL, Convention.TEXT_LABEL),
    target=Target.CLASSES,
    problem_type=MULTI,
    named_outputs=True,
    counted="examples",
    measure=_measure,
    metrics=("loss", "accuracy", "f1_micro", "f1_macro"),
    best="f1_micro",
    compared="f1_micro",
)
