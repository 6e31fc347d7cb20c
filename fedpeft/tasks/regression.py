"""A number for a text, or for a pair of texts."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.correlation import Correlation
from fedpeft.tasks.form import NUMBER, SEQUENCE
from fedpeft.tasks.measure import Measure
from fedpeft.tasks.record import Range, Target, TaskRecord

__all__ = ["TASK"]


def _measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    return None if scale is None else Correlation(*scale)


TASK = TaskRecord(
    name="regression",
    help="a number for a text or a pair of texts",
    form=SEQUENCE,
    conventions=(Convention.TEXT_PAIR_LABEL, Convention.TEXT_LABEL),
    target=Target.VALUE,
    problem_type=NUMBER,
    named_outputs=False,
    counted="examples",
    accuracy=False,
    measure=_measure,
    metrics=("loss", "pearson", "spearman"),
    best="pearson",
    compared="spearman",
)
