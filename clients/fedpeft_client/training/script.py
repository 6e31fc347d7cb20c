"""A program of the site's that trains in its own way, in the place of fedpeft's loop (``fedpeft.attach``)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from fedpeft.data import EncodedDataset
from fedpeft.round.plan import LearningPlan
from fedpeft.tuning import LocalPlan

if TYPE_CHECKING:
    from fedpeft.methods import UnionAdapter

__all__ = ["Script"]


class Script(Protocol):
    """Takes a round's optimizer steps. Everything else of a device stays what it is, example-level privacy apart."""

    def expect(self, plan: LearningPlan) -> None:
        """Returns when it can train as this plan says; asked before the base is loaded.

        Raises:
            PolicyRefused: it cannot; names what of the plan.
        """
        ...

    def expect_base(self, config: Mapping[str, object]) -> None:
        """Returns when the base with this config.json is the model that the program was written for.

        Raises:
            PolicyRefused: it is another one.
        """
        ...

    def expect_vocabulary(self, vocabulary: Mapping[str, int]) -> None:
        """Returns when the program's token ids mean what they mean to the base.

        Args:
            vocabulary: the number of each token of the base's tokenizer.

        Raises:
            PolicyRefused: the program's tokenizer is another one.
        """
        ...

    def sizes(self) -> tuple[int, int]:
        """How many training and held-out examples it has, whether they can be used or not."""
        ...

    def tokens(self, plan: LearningPlan) -> tuple[EncodedDataset, EncodedDataset]:
        """Its training and held-out examples; may raise anything."""
        ...

    def take_steps(self, union: "UnionAdapter", plan: LocalPlan, *, seed: int) -> tuple[float, int]:
        """Train the plan's blocks in place for so many steps.

        Args:
            union: the model with the state that the round begins with.
            plan: what the run asks for.
            seed: of the order of the examples; another one in each round.

        Returns:
            The loss summed over the examples seen, and their number.
        """
        ...
