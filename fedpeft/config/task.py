"""[task]: what is learnt."""

from pydantic import Field

from fedpeft.catalogue.section import Section
from fedpeft.tasks import TASKS, Kind, TaskRecord

__all__ = ["Task"]


class Task(Section):
    """What is learnt."""

    kind: Kind = Field(description="A class for a text, or the text that follows one.")
    labels: tuple[str, ...] = Field(
        default=(), description="The class names in order; empty: the sorted labels of the data (simulation only)."
    )
    max_length: int = Field(
        default=128, ge=8, le=8192, description="Tokens an example may have; longer ones are truncated."
    )

    @property
    def record(self) -> TaskRecord:
        """What fedpeft knows of this kind of task."""
        return TASKS[self.kind]
