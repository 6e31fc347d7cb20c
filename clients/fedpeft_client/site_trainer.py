"""The trainer of a real device: its site's examples and rules around ``TorchTrainer``.

The site's rules are asked in ``spec``, which every fit request comes to first: a plan that breaks one is refused
before the base is loaded or an example is read.
"""

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.base import ArtifactStore
from fedpeft.clock import Clock
from fedpeft.config.model import Rounds
from fedpeft.data import load_records, split_holdout, validate
from fedpeft.device import Limits, Menu, Workload, menu_of, plan, probe, shape_of
from fedpeft.entropy import derive_seed
from fedpeft.errors import PolicyRefused
from fedpeft.ids import BlockId
from fedpeft.privacy import SampledRelease
from fedpeft.round.local import DeviceStore, LocalResult
from fedpeft.round.messages import FitRequest
from fedpeft.round.plan import LearningPlan
from fedpeft_client.bench import Bench, Residency
from fedpeft_client.examples import Examples, cacheable_examples
from fedpeft_client.site import Site, methods_of
from fedpeft_client.trainer import Capacity, TorchTrainer

__all__ = ["SiteTrainer"]


class SiteTrainer:
    """Implements ``Trainer``; keeps the base, and the encoded examples of one run.

    Args:
        device: its name in the federation.
        site: what it lends and permits.
        bases: where its base artifacts lie.
        clock: for the site's hours.
        memory: where it keeps local blocks and controls between rounds; None: in RAM.
    """

    def __init__(
        self, *, device: str, site: Site, bases: ArtifactStore, clock: Clock, memory: DeviceStore | None = None
    ) -> None:
        self._device, self._site, self._bases, self._clock = device, site, bases, clock
        self._memory = memory
        self._bench = self._new_bench(site.limits.residency)
        self._trainer: tuple[str, TorchTrainer] | None = None

    @property
    def methods(self) -> str:
        """See ``Trainer``; of the plan at work, once there is one."""
        if self._trainer is not None:
            return self._trainer[1].methods
        chosen = self._site.limits.methods
        return chosen if isinstance(chosen, str) else " + ".join(chosen)

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        self._site.permit(plan, now=self._clock.utc().astimezone())
        self._for(plan)  # before the base is loaded: the planner may say whether it stays packed
        return self._bench.spec(plan)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        return self._for(plan).trains(plan)

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``."""
        return self._for(plan).cost(plan)

    def fit(self, plan: LearningPlan, state: AdapterState, request: FitRequest) -> LocalResult:
        """See ``Trainer``."""
        return self._for(plan).fit(plan, state, request)

    def _for(self, plan: LearningPlan) -> TorchTrainer:
        key = plan.to_json()
        if self._trainer is None or self._trainer[0] != key:
            self._trainer = (key, self._made(plan))
        return self._trainer[1]

    def _made(self, plan: LearningPlan) -> TorchTrainer:
        data, policy = self._site.data, self._site.policy
        records = load_records(data.source, data.map)
        validate(records, plan.task)
        if len(records) < policy.min_examples:
            raise PolicyRefused(f"Expected {policy.min_examples} examples or more on this device, found fewer.")
        # As in the simulation: the run's seed decides the split, so a device has the same one in every round.
        train, held_out = split_holdout(records, data.holdout, derive_seed(plan.seed, "holdout"))
        capacity, residency = self._choice(plan, held_out=len(held_out), train=len(train))
        if residency != self._bench.residency:
            self._bench = self._new_bench(residency)
        examples = Examples(
            self._device, bench=self._bench, train=train, held_out=held_out, cache_mb=self._site.limits.cache_mb
        )
        return TorchTrainer(
            device=self._device,
            capacity=capacity,
            bench=self._bench,
            examples=examples,
            memory_use=self._site.limits,
            memory=self._memory,
        )

    def _new_bench(self, residency: Residency) -> Bench:
        return Bench(self._bases, residency=residency, accelerator=self._site.limits.accelerator)

    def _choice(self, run: LearningPlan, *, held_out: int, train: int) -> tuple[Capacity, Residency]:
        """What to train and how the base is held: as the site says, or what the planner finds to fit this machine."""
        limits = self._site.limits
        offered = self._site.trained(methods_of(run.adapter))
        if limits.methods != "auto":
            rank = limits.rank if "lora" in offered else None
            return Capacity(methods=offered, rank=rank, head=limits.head), limits.residency
        shape = shape_of(self._bases.get(run.base))
        rounds = Rounds()
        like = Workload(
            adapter=run.adapter,
            methods=(),
            head=limits.head,
            classes=len(run.task.labels),
            batch_size=run.train.batch_size,
            length=run.task.max_length,
            local_steps=run.train.local_steps,
            eval_examples=min(held_out, rounds.eval_examples),
            micro_batch=limits.micro_batch,
            cached_examples=min(cacheable_examples(run.task.max_length, shape.hidden, limits.cache_mb), train),
        )
        profile = probe().lending(limits.ram_mb)
        workloads = tuple(
            choice
            for choice in menu_of(shape, run.adapter, like)
            if set(choice.methods) <= set(offered)
            and (choice.rank or 0) <= (limits.rank or 1024)
            and limits.residency in ("auto", choice.residency)
            and (choice.checkpointing or not (limits.checkpointing and choice.methods))
        )
        chosen = plan(
            profile,
            Limits(
                uplink_bits_s=None if limits.uplink_mbit is None else limits.uplink_mbit * 1e6,
                fit_deadline_s=rounds.fit_deadline_s,
                upload_deadline_s=rounds.stage_deadline_s,
            ),
            Menu(shape=shape, workloads=workloads),
        )
        return Capacity.of(chosen), chosen.workload.residency
