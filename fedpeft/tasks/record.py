"""What fedpeft knows of one task: what its examples are, which model serves it, what is measured. No torch.

A record is all that the rest of the program asks: no other module compares a task's name
(tests/tasks/test_contract.py). Whoever turns rows into tokens (``fedpeft.data``) and logits into a loss
(``fedpeft.tuning``) goes by ``target``: what stands beside an example's text.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import SEQ2SEQ, TEXT, Form, without_names
from fedpeft.tasks.measure import Measure

__all__ = ["Range", "Target", "TaskRecord", "no_measure"]

Range = tuple[float, float]
"""The lowest and the highest number of a regression."""


class Target(enum.Enum):
    """What a model is trained to give for one example; names the encoding of labels and the loss."""

    CLASS = "one class"
    """int64 (n,); cross entropy."""
    VALUE = "a number"
    """float32 (n,); squared error."""
    CLASSES = "any number of labels"
    """float32 (n, outputs) of 0 and 1; binary cross entropy, the mean over the outputs."""
    TAGS = "a tag for each word"
    """One int64 label per token, -100 on special tokens and on the pieces of a word after its first; cross entropy."""
    NEXT_TOKEN = "the token that follows"  # noqa: S105 - no password
    """One int64 label per token, not shifted; cross entropy of each from the tokens before it."""
    PREFERENCE = "the answer that is preferred"
    """One row per example: the preferred answer behind its prompt, then the other one behind the same prompt; either
    may be missing. One int64 label per token of an answer; the loss is of both answers' log-probabilities
    (``fedpeft.tuning.preference``)."""
    TARGET_TEXT = "a text of its own"
    """Source and target in one row, one int64 label per token of the target; cross entropy of each from the source and
    the target's tokens before it."""
    CLOSER = "texts that belong together"
    """One row per example: an anchor, then what belongs to it, then, in triplets, what does not; the loss compares
    every anchor of a batch with all its other texts (``fedpeft.tuning.contrast``)."""


def no_measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    """Loss and accuracy are all that is measured."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task.

    Args:
        name: in task.kind.
        help: what is learnt, in a few words.
        form: the transformers model that serves it.
        conventions: the columns that carry an example, the first that fits.
        target: see ``Target``.
        problem_type: transformers' name of the loss, in a classifier's config; empty: it has none.
        named_outputs: whether task.labels names the outputs, in order.
        counted: what a loss and an accuracy are means over.
        accuracy: whether there is a share of right answers.
        generates: whether its answers can be generated and compared with what should have been written.
        measure: (names of the outputs, task.range) -> the lanes that the task sums beside loss and accuracy.
        metrics: those by which a state can be chosen (rounds.metric), loss and accuracy among them.
        best: the one that chooses the best state, unless rounds.metric says another.
        compared: the one in which a simulation compares ways of training.
    """

    name: str
    help: str
    form: Form
    conventions: tuple[Convention, ...]
    target: Target
    problem_type: str = ""
    named_outputs: bool
    counted: Literal["examples", "words", "tokens"]
    accuracy: bool = True
    generates: bool = False
    measure: Callable[[tuple[str, ...], Range | None], Measure | None] = no_measure
    metrics: tuple[str, ...] = ("loss", "accuracy")
    best: str
    compared: str

    @property
    def adds_head(self) -> bool:
        """Whether the task adds parameters to the base: those that the class head's block trains."""
        return not without_names(self.form)

    @property
    def writes(self) -> bool:
        """Whether the outputs are over the vocabulary: the model answers in words."""
        return self.form in (TEXT, SEQ2SEQ)

    @property
    def contrasts(self) -> bool:
        """Whether an example is several texts, whose vectors are compared with those of a whole batch."""
        return self.target is Target.CLOSER

    @property
    def why_not_by_example(self) -> str:
        """Why no example has a gradient of its own that could be clipped; empty: each has."""
        if self.contrasts:
            return "whose loss compares an example with all others of its batch"
        return "an encoder-decoder, whose examples have no gradients of their own yet" if self.from_a_source else ""

    @property
    def one_class(self) -> bool:
        """Whether each example has one class: what class means and label calibration are about."""
        return self.target is Target.CLASS

    @property
    def a_number(self) -> bool:
        """Whether an example has a number, within task.range."""
        return self.target is Target.VALUE

    @property
    def from_a_source(self) -> bool:
        """Whether an example is a text to be read whole and one to be written: for encoder-decoders."""
        return self.target is Target.TARGET_TEXT

    @property
    def prefers(self) -> bool:
        """Whether an example holds answers that are wanted or not, which are compared with the base's own liking."""
        return self.target is Target.PREFERENCE

    @property
    def tags_words(self) -> bool:
        """Whether each word of an example has a label of its own."""
        return self.target is Target.TAGS
