"""One PEFT method as everything but torch knows it: one record, read by configuration, planner, schedule and docs."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from fedpeft.adapter import AdapterState
from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.catalogue.finding import Finding
from fedpeft.catalogue.footprint import Footprint
from fedpeft.catalogue.method_section import MethodSection
from fedpeft.catalogue.opacus import NOT_COMPARED, Opacus
from fedpeft.catalogue.rates import Placed
from fedpeft.catalogue.section import Section
from fedpeft.ids import BlockId

__all__ = ["BOTH", "NO_EXPORT", "AnyMethod", "Export", "Method", "MethodPlugin", "MethodRow", "TrainingRounds"]

S = TypeVar("S", bound=Section)
Kind = Literal["encoder", "decoder"]
BOTH: tuple[Kind, ...] = ("encoder", "decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """What people read of one method: docs/methods.md and ``fedpeft methods ls``.

    Args:
        title: the field's name for it.
        formula: what it computes, in the notation of docs/notation.md.
        paper: author and year.
        attaches: to which modules.
        summed: what its secure sum means for the model.
        example_dp: how per-example gradients are had, for example-level differential privacy.
        export: the files it becomes.
        served_by: programs that run these files without fedpeft.
    """

    title: str
    formula: str
    paper: str
    attaches: str
    summed: str
    example_dp: str
    export: str
    served_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The form of the peft library that holds the method.

    Args:
        peft_type: of ``adapter_config.json``; empty: none, ``union.safetensors`` holds it.
        alone: the kinds of model on which such a directory holds an adapter of this method alone, exactly.
        more: a setting beside ``peft_type`` that not every reader of that type knows; empty: none.
    """

    peft_type: str = ""
    alone: tuple[Kind, ...] = ()
    more: str = ""


NO_EXPORT = Export()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRounds:
    """The rounds of a run that train the methods.

    Args:
        count: how many.
        text: how a message calls them.
    """

    count: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[S]):
    """One method. tests/catalogue/test_contract.py holds every field against the adapter that torch makes.

    Args:
        name: in run.toml, of its blocks (``NAME`` or ``NAME.something``), and of its graft.
        section: its settings, [adapter.NAME].
        example: small settings, for tests and documentation; in four rounds every block is trained.
        footprint: what one adapted layer of a base has of it; no blocks: the base cannot take it.
        row: for people.
        export: to the peft library.
        due: whether a round trains a block, from settings, block and round (from 1); None: every round, every block.
        between_rounds: the state that the next round begins with, from the mean of a round, the settings and the
            round; None: the mean itself. Pure.
        chooses: the frozen blocks that ``between_rounds`` fills in, with whole numbers from 0 to the one given.
        findings: what is impossible in a run of so many rounds.
        switchable: whether some values, those of its start among them, leave the base as it was.
        opacus: whether Opacus takes its private steps (``privacy.engine``).
        measures: its parts draw, score or mask in a step (``fedpeft.grafting.step_hooks``): no DP-SGD.
        at_input: it sits below the lowest layer, so nothing can be cached.
        picks_tokens: the layer computes some tokens only, and the last one must be shown all.
        made_of_runs: frozen blocks are filled in from earlier runs before round 1.
        tiers: the ranks at which a device may stop, ascending, of its settings; None: a device trains all or nothing.
        rate: what ``learning_rate = "auto"`` is for one of its blocks; None: nobody measured it (``UNMEASURED``).
        counts_rounds: it spends a fixed number of rounds, so that none is spared to measure the class head.
    """

    name: str
    section: type[S]
    example: S
    footprint: Callable[[BaseShape, S], Footprint]
    row: MethodRow
    export: Export = NO_EXPORT
    due: Callable[[S, BlockId, int], bool] | None = None
    between_rounds: Callable[[AdapterState, S, int], AdapterState] | None = None
    chooses: tuple[tuple[BlockId, int], ...] = ()
    findings: Callable[[S, TrainingRounds], Iterator[Finding]] | None = None
    tiers: Callable[[S], tuple[int, ...]] | None = None
    rate: Callable[[S, Placed], float] | None = None
    opacus: Opacus = NOT_COMPARED
    switchable: bool = True
    measures: bool = False
    at_input: bool = False
    picks_tokens: bool = False
    made_of_runs: bool = False
    counts_rounds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPlugin:
    """A method of another package (docs/plugins.md).

    Args:
        section: its settings, [adapter.NAME], NAME being that of the entry point; each has a default, and the class
            is of this method alone.
        footprint: as of ``Method``; it names every block that ``attach`` makes.
        attach: ``module:function`` from (anatomy, settings, seed) to blocks (``fedpeft.grafting``); imported where
            models are.
        title, formula, paper: as of ``MethodRow``.
        rate, switchable: as of ``Method``.
    """

    section: type[MethodSection]
    footprint: Callable[[BaseShape, Any], Footprint]
    attach: str
    title: str
    formula: str
    paper: str = "a plug-in"
    rate: Callable[[Any, Placed], float] | None = None
    switchable: bool = True

    def expect_usable(self, taken: Collection[type[Section]]) -> None:
        """Returns if fedpeft can make a method of it; whatever type checkers would say is said here too.

        Args:
            taken: the settings of other methods: by its class a section is known to be of one.

        Raises:
            TypeError: a field is not what it must be.
            ValueError: another method has this section, or (pydantic's) a setting has no default.
        """
        if not (isinstance(self.section, type) and issubclass(self.section, MethodSection)):
            raise TypeError("expected a section that derives from MethodSection")
        if self.section in taken:
            raise ValueError(f"expected a section of its own, found {self.section.__name__}, which another method has")
        if not callable(self.footprint) or not (self.rate is None or callable(self.rate)):
            raise TypeError("expected functions as footprint and rate")
        if not all(isinstance(text, str) for text in (self.attach, self.title, self.formula, self.paper)):
            raise TypeError("expected texts as attach, title, formula and paper")
        self.section()

    def method(self, name: str, source: str) -> "Method[Any]":
        """Its record under this name, of this package and version."""
        return Method(
            name=name,
            section=self.section,
            example=self.section(),
            footprint=self.footprint,
            row=MethodRow(
                title=self.title,
                formula=self.formula,
                paper=self.paper,
                attaches=f"as {source} says",
                summed="the parameters themselves",
                example_dp="refused: nobody has shown that its parts keep examples apart",
                export="union.safetensors, for fedpeft alone",
                served_by=("fedpeft",),
            ),
            rate=self.rate,
            switchable=self.switchable,
            measures=True,
        )


AnyMethod = Method[Any]
"""A method whatever its settings: the tuple holds different ones."""
