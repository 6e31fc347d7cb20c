"""One class for a text."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import SEQUENCE
from fedpeft.tasks.record import Target, TaskRecord

__all__ = ["TASK"]

TASK = TaskRecord(
    name="classify",
    help="a class for a text",
    form=SEQUENCE,
    conventions=(Convention.TEXT_LABEL,),
    target=Target.CLASS,
    problem_type="single_label_classification",
    named_outputs=True,
    counted="examples",
    best="loss",
    compared="accuracy",
)
