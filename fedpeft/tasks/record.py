"""What fedpeft knows of one task: what its examples are, which model serves it, what is measured. No torch.

A record is all that the rest of the program asks: no other module compares a task's name
(tests/tasks/test_contract.py). Whoever turns rows into tokens (``fedpeft.data``) and logits into a loss
(``fedpeft.tuning``) goes by ``target``: what stands beside an example's text.
"""

import enum
from dataclasses import dataclass
from typing import Literal

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import TEXT, Form

__all__ = ["Target", "TaskRecord"]


class Target(enum.Enum):
    """What a model is trained to give for one example; names the encoding of labels and the loss."""

    CLASS = "one class"
    """int64 (n,); cross entropy."""
    NEXT_TOKEN = "the token that follows"  # noqa: S105 - no password
    """One int64 label a token, not shifted; cross entropy of each from the tokens before it."""


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
        best: the metric by which the best state is chosen, unless rounds.metric says another.
        compared: the metric in which a simulation compares ways of training.
    """

    name: str
    help: str
    form: Form
    conventions: tuple[Convention, ...]
    target: Target
    problem_type: str = ""
    named_outputs: bool
    counted: Literal["examples", "tokens"]
    best: str
    compared: str

    @property
    def adds_head(self) -> bool:
        """Whether the task adds parameters to the base: those that the class head's block trains."""
        return self.form != TEXT

    @property
    def one_class(self) -> bool:
        """Whether each example has one class: what class means and label calibration are about."""
        return self.target is Target.CLASS
