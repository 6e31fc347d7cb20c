"""[task]: what is learnt."""

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedpeft.catalogue.section import Section
from fedpeft.tasks import TASKS, Kind, Measure, TaskRecord
from fedpeft.tasks.generated import Generated, Generation

__all__ = ["Task"]

TEXTS_TOGETHER = 3
"""Texts of a triplet."""
_GENERATING = ("generate", "max_new_tokens")
VALUE = "value"
"""What the one output of a regression is called."""


class Task(Section):
    """What is learnt."""

    kind: Kind = Field(
        description="A class for a text or a pair of texts, any number of labels, a number, a tag for each word; the "
        "text that follows one; which answer is preferred; or a vector for a text."
    )
    labels: tuple[str, ...] = Field(
        default=(),
        description="The class names (or tags) in order; empty: the sorted labels of the data (simulation only).",
    )
    max_length: int = Field(
        default=128, ge=8, le=8192, description="Tokens an example may have; longer ones are truncated."
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="For preference: how strongly the model is held to the base's own answers; larger holds it more.",
    )
    scale: float = Field(
        default=20.0,
        ge=1,
        le=1000,
        description="For embeddings: what cosines are multiplied by in front of the softmax (1 / temperature).",
    )
    range: tuple[float, float] | None = Field(
        default=None,
        description="For regression: the lowest and the highest number, [0, 5]; none: those of the data (simulation "
        "only). The loss is not scaled by it; sums and correlations are.",
    )
    generate: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="For causal-lm and seq2seq: each evaluation generates answers to so many held-out prompts of a "
        "device and has ROUGE-L and exact match; 0: none.",
    )
    max_new_tokens: int = Field(
        default=64, ge=1, le=1024, description="Tokens at which a generated answer of `generate` is cut."
    )

    @model_serializer(mode="wrap")
    def _without_what_means_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Plans are known by the digest of their text: those that generate nothing are what they were before."""
        written: dict[str, object] = serialize(self)
        return {key: value for key, value in written.items() if self.generate or key not in _GENERATING}

    @property
    def record(self) -> TaskRecord:
        """What fedpeft knows of this kind of task."""
        return TASKS[self.kind]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the model's outputs; none for a language model, whose outputs are its vocabulary."""
        return (VALUE,) if self.record.a_number else self.labels

    @property
    def row_tokens(self) -> int:
        """The most tokens of an example, all its texts together."""
        return TEXTS_TOGETHER * self.max_length if self.record.contrasts else self.max_length

    @property
    def measure(self) -> Measure | None:
        """What is summed beside loss and accuracy."""
        return self.output_measure if self.generation is None else Generated()

    @property
    def output_measure(self) -> Measure | None:
        """As ``measure``, where nothing has to be generated for it."""
        return self.record.measure(self.outputs, self.range)

    @property
    def generation(self) -> Generation | None:
        """What an evaluation generates; None: nothing."""
        wanted = self.record.generates and self.generate > 0
        return Generation(rows=self.generate, max_new_tokens=self.max_new_tokens) if wanted else None

    @property
    def loss_unit(self) -> float:
        """What a loss is divided by before it is summed: for a number the square of half its range, else 1.

        Summed losses are cut at 8 (``fedpeft.privacy.LOSS_LIMIT``). One of embeddings is at most 2 scale and the
        logarithm of the texts that are compared: 8 (1 + scale / 4) holds it for 2,980 texts.
        """
        if self.record.contrasts:
            return 1.0 + self.scale / 4
        return 1.0 if self.range is None else ((self.range[1] - self.range[0]) / 2) ** 2
