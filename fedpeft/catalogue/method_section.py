"""What the section of every PEFT method has in run.toml."""

from pydantic import Field

from fedpeft.catalogue.section import Section

__all__ = ["InputSection", "LayerRange", "MethodSection"]

LayerRange = tuple[int, int]
"""The first and the last layer, counted from 0 at the input, both included."""


class MethodSection(Section):
    """One method: where it sits and how fast it learns. Ranges of different methods make a hierarchical adapter."""

    learning_rate: float | None = Field(
        default=None, gt=0, description="Overrides train.learning_rate for these blocks."
    )
    layers: LayerRange | None = Field(
        default=None,
        description="First and last layer of this method, from 0 at the input; none: as adapter.layers says.",
    )


class InputSection(Section):
    """A method that adds tokens to the input: it sits below every layer."""

    length: int = Field(default=16, ge=1, le=1024, description="Virtual tokens; task.max_length and they must fit.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="Overrides train.learning_rate for these blocks."
    )
