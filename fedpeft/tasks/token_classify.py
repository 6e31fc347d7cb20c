"""A tag for each word: names of places, people, drugs."""

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.entities import Entities, entity_types
from fedpeft.tasks.form import TAGS
from fedpeft.tasks.measure import Measure
from fedpeft.tasks.record import Range, Target, TaskRecord

__all__ = ["TASK"]


def _measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    return Entities(outputs) if entity_types(outputs) else None


TASK = TaskRecord(
    name="token-classify",
    help="a tag for each word",
    form=TAGS,
    conventions=(Convention.WORDS_TAGS,),
    target=Target.TAGS,
    named_outputs=True,
    counted="words",
    measure=_measure,
    metrics=("loss", "accuracy", "entity_f1"),
    best="entity_f1",
    compared="entity_f1",
)
