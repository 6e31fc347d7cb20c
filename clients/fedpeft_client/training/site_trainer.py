"""The trainer of a real device: its site's examples and rules around ``TorchTrainer``.

The site's rules are asked in ``spec``, which every fit request comes to first: a plan that breaks one is refused
before the base is loaded or an example is read.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.base import ArtifactStore, load_tokenizer
from fedpeft.base.source import CONFIG_FILE, read_json
from fedpeft.clock import Clock
from fedpeft.data import (
    EncodedDataset,
    Records,
    count_people,
    fits,
    nothing_encoded,
    readable_records,
    split_each,
    split_holdout,
    split_people,
)
from fedpeft.entropy import derive_seed
from fedpeft.ids import SIZELESS, BlockId, SizeClass
from fedpeft.privacy import SampledRelease
from fedpeft.round.device.records import kept
from fedpeft.round.failures import cause_of
from fedpeft.round.local import DeviceStore, Effort, LocalResult
from fedpeft.round.plan import LearningPlan
from fedpeft.round.size_class import size_class, upper_end
from fedpeft.round.work import Work
from fedpeft.wire import encode, message
from fedpeft_client.site import Site
from fedpeft_client.site_runs import SiteRuns
from fedpeft_client.training.capacity import CapacityPlanner, Sensors
from fedpeft_client.training.device_stores import MemoryStore
from fedpeft_client.training.examples import Examples
from fedpeft_client.training.model_pool import ModelPool, Residency
from fedpeft_client.training.script import Script
from fedpeft_client.training.state_watch import StateWatch
from fedpeft_client.training.trainer import TorchTrainer

__all__ = ["SiteTrainer"]

THIS_MACHINE = Sensors()
UNTOLD = 2**20
"""Examples that the planner counts on where the site says nothing of its size."""
SIZES, RUNS_KEPT = "size-classes", 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOfRun:
    """What the device declared in a run."""

    run_id: str
    declared: SizeClass


@message(0x0184, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class SizesSeen:
    """Store record: the runs of late and the size class declared in each."""

    runs: tuple[SizeOfRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """All examples, those of them to train and to evaluate on, and of how many people the training side is."""

    records: Records
    train: Records
    held_out: Records
    people: int | None = None

    @classmethod
    def nothing(cls) -> "_Read":
        """As of a site whose examples are elsewhere."""
        none = Records.of(())
        return cls(records=none, train=none, held_out=none)


class SiteTrainer:
    """Implements ``Trainer``; keeps the base, and the encoded examples of one run.

    Args:
        device: its name in the federation.
        site: what it lends and permits.
        bases: where its base artifacts lie.
        clock: for the site's hours.
        memory: where it keeps local blocks and controls between rounds; None: in RAM.
        sensors: how the machine is asked what it has.
        runs: what the site's owner said of each run; None: nothing.
        script: a program of the site's that has the examples and takes the steps; None: ``site.data``, and fedpeft's
            own loop.
    """

    def __init__(
        self,
        *,
        device: str,
        site: Site,
        bases: ArtifactStore,
        clock: Clock,
        memory: DeviceStore | None = None,
        sensors: Sensors = THIS_MACHINE,
        runs: SiteRuns | None = None,
        script: Script | None = None,
    ) -> None:
        self._device, self._site, self._bases, self._clock = device, site, bases, clock
        self._memory, self._sensors, self._runs, self._script = memory, sensors, runs, script
        self._pool = self._new_pool(site.limits.residency)
        self._trainer: tuple[str, CapacityPlanner, TorchTrainer] | None = None
        self._troubles: tuple[str, ...] = ()
        self._same_base = ""
        self._watch = StateWatch(site.policy.max_state_step, memory or MemoryStore())

    @property
    def methods(self) -> str:
        """See ``Trainer``; of the plan at work, once there is one."""
        if self._trainer is not None:
            return self._trainer[2].methods
        chosen = self._site.limits.methods
        return chosen if isinstance(chosen, str) else " + ".join(chosen)

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``; a round begins with it, so here the device chooses what it trains."""
        self._site.permit(plan, now=self._clock.utc().astimezone())
        if self._runs is not None:
            self._runs.expect_approved(plan, ask=self._site.policy.approve == "ask")
        if self._script is not None:
            self._script.expect(plan)
            self._expect_base(self._script, plan.base)
            if self._troubles:  # its examples may be there again
                self._trainer = None
        planner, trainer = self._for(plan)  # before the base is loaded: the planner may say whether it stays packed
        trainer.change(planner.now())
        return self._pool.spec(plan)

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """See ``Trainer``."""
        return self._for(plan)[1].first_state(plan)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        return self._for(plan)[1].trains(plan)

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """See ``Trainer``."""
        return self._for(plan)[1].size_class(plan)

    def evaluates(self, plan: LearningPlan) -> bool:
        """See ``Trainer``."""
        return self._for(plan)[1].evaluates(plan)

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``."""
        return self._for(plan)[1].cost(plan)

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``."""
        first = partial(self.first_state, plan)
        self._watch.expect_near(plan, state, work.first_step, start=first, controls=work.controls)
        result = self._for(plan)[1].fit(plan, state, work, effort)
        return replace(result, troubles=(*self._troubles, *result.troubles))

    def _expect_base(self, script: Script, digest: str) -> None:
        if digest != self._same_base:
            artifact = self._bases.get(digest)
            script.expect_base(read_json(artifact.path / CONFIG_FILE))
            script.expect_vocabulary(load_tokenizer(artifact).get_vocab())
            self._same_base = digest

    def _for(self, plan: LearningPlan) -> tuple[CapacityPlanner, TorchTrainer]:
        key = plan.to_json()
        if self._trainer is None or self._trainer[0] != key:
            self._trainer = (key, *self._made(plan))
        return self._trainer[1:]

    def _made(self, plan: LearningPlan) -> tuple[CapacityPlanner, TorchTrainer]:
        script = self._script
        tokens = None if script is None else self._tokens(script, plan)
        read = self._read(plan) if tokens is None else _Read.nothing()
        records, train, held_out = read.records, read.train, read.held_out
        unusable = len(records) - len(train) - len(held_out)
        evaluates = None
        if script is not None:
            # What is said of the data does not depend on whether they could be used, as with records.
            unusable, held_back = script.sizes()
            evaluates = held_back > 0
        declared = self._pinned(plan, size_class(len(train) + unusable if read.people is None else read.people))
        # What fits the planner's choice is seen by everybody, so it is told of the class alone.
        each = 1 if read.people is None or plan.privacy is None else plan.privacy.examples_per_person
        most = each * math.ceil(upper_end(declared)) if self._site.policy.declare_size else UNTOLD
        share = self._site.data.holdout
        held = math.ceil(most * share / (1.0 - share))
        planner = CapacityPlanner(self._site, plan, self._bases, train=most, held_out=held, sensors=self._sensors)
        if planner.residency != self._pool.residency:
            self._pool = self._new_pool(planner.residency)
        examples = Examples(
            self._device,
            pool=self._pool,
            train=train,
            held_out=held_out,
            cache_mb=self._site.limits.cache_mb,
            unusable=unusable,
            people=read.people,
            evaluates=len(records) > 1 or declared > 0 if evaluates is None else evaluates,
            tokens=tokens,
        )
        trainer = TorchTrainer(
            device=self._device,
            capacity=planner.capacity,
            pool=self._pool,
            examples=examples,
            memory_use=self._site.limits,
            memory=self._memory,
            declared=declared,
            script=self._script,
        )
        return planner, trainer

    def _tokens(self, script: Script, plan: LearningPlan) -> tuple[EncodedDataset, EncodedDataset]:
        """The program's examples; without any where they cannot be had, as ``_read``."""
        none = nothing_encoded(plan.task)
        try:
            train, held_out = script.tokens(plan)
        except Exception as error:
            self._troubles = (cause_of(error),)
            return none, none
        least, found = self._site.policy.min_examples, len(train) + len(held_out)
        self._troubles = ()
        if found < least:
            self._troubles = (f"Expected policy.min_examples={least} examples or more, found {found}.",)
        return (none, none) if found < least else (train, held_out)

    def _pinned(self, plan: LearningPlan, found: SizeClass) -> SizeClass:
        """The size class of the whole run: that of the data when the run was first seen; 0 if the site hides it."""
        if not self._site.policy.declare_size:
            return SIZELESS
        seen = None if self._memory is None else kept(self._memory, SIZES, SizesSeen)
        sizes = {entry.run_id: entry.declared for entry in (seen.runs if seen else ())}
        declared = sizes.setdefault(plan.run_id, found)
        if self._memory is not None:
            latest = list(sizes.items())[-RUNS_KEPT:]
            runs = tuple(SizeOfRun(run_id=run_id, declared=size) for run_id, size in latest)
            self._memory.write(SIZES, encode(SizesSeen(runs=runs)))
        return declared

    def _read(self, plan: LearningPlan) -> "_Read":
        """All examples, and those of them to train and to evaluate on; without any where there are none to read.

        Nothing here is refused: what a plan makes of the examples must not be heard of (``fedpeft.round.failures``).
        """
        data = self._site.data
        records, lost = readable_records(data.source, data.map)
        self._troubles = (lost,) if lost else ()
        usable = records.select(index for index, row in enumerate(records.rows) if fits(row, plan.task))
        if len(usable) < len(records):
            few = f"{len(records) - len(usable)} of {len(records)} examples do not fit the task and teach nothing"
            self._troubles += (f"{few}; `fedpeft data check` names them.",)
        least = self._site.policy.min_examples
        if len(records) < least:
            self._troubles += (f"Expected policy.min_examples={least} examples or more, found {len(records)}.",)
            usable = records.select(())
        try:
            return self._split(plan, records, usable)
        except Exception as error:
            self._troubles += (cause_of(error),)
            by_people = plan.privacy is not None and plan.privacy.unit == "person"
            return _Read(records=records, train=usable, held_out=usable.select(()), people=0 if by_people else None)

    def _split(self, plan: LearningPlan, records: Records, usable: Records) -> "_Read":
        """As in the simulation: the run's seed decides, so a device has the same sides in every round."""
        share, seed = self._site.data.holdout, derive_seed(plan.seed, "holdout")
        if plan.privacy is None or plan.privacy.unit == "example":
            split = split_each if plan.privacy is not None else split_holdout
            train, held_out = split(usable, share, seed)
            return _Read(records=records, train=train, held_out=held_out)
        train, held_out = split_people(usable, share, seed)
        if nobodys := len(usable) - len(train) - len(held_out):
            self._troubles += (f"{nobodys} of {len(usable)} rows have no person and are not trained on.",)
        people = count_people(split_people(records, share, seed)[0])  # those without a usable row are counted as well
        return _Read(records=records, train=train, held_out=held_out, people=people)

    def _new_pool(self, residency: Residency) -> ModelPool:
        return ModelPool(self._bases, residency=residency, accelerator=self._site.limits.accelerator)
