"""Trainers without torch: deltas that a test can add up by hand, and a linear model that really learns."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState, BlockSpec, TensorSpec
from fedpeft.config.model import Adapter, Aggregate, Lora, RunConfig, SecureAggregation, Task, Train
from fedpeft.entropy import generator
from fedpeft.ids import BlockId, SizeClass
from fedpeft.privacy import SampledRelease
from fedpeft.round.example_privacy import round_cost
from fedpeft.round.local import Effort, LocalResult
from fedpeft.round.plan import LearningPlan, PlannedRounds, learning_plan
from fedpeft.round.rates.search import local_steps, probe_states, probes_rate
from fedpeft.round.ring_range import CEILING
from fedpeft.round.size_class import size_class
from fedpeft.round.work import Work

__all__ = ["FROZEN", "GivenTrainer", "LinearTrainer", "one_hot", "toy_plan", "toy_plan_of", "toy_spec", "toy_state"]

Vector = npt.NDArray[np.float32]
FROZEN = BlockId("lora.A.t4")


def toy_spec(sizes: Mapping[str, int]) -> AdapterSpec:
    """A frozen block of three coordinates and one trainable block of one tensor for each of ``sizes``."""
    trained = tuple(
        BlockSpec(
            block_id=BlockId(name),
            method=name.split(".", maxsplit=1)[0],
            tensors=(TensorSpec(name=f"{name}.weight", shape=(size,)),),
        )
        for name, size in sizes.items()
    )
    frozen = BlockSpec(
        block_id=FROZEN, method="lora", tensors=(TensorSpec(name="lora.A.weight", shape=(3,)),), trainable=False
    )
    return AdapterSpec(blocks=(frozen, *trained))


def toy_state(spec: AdapterSpec, *, seed: int = 0) -> AdapterState:
    """Eighths in [-1, 1]: exact in float32, and so are their sums."""
    draw = generator(seed, "toy state")
    vectors = {block.block_id: draw.integers(-8, 9, block.size).astype(np.float32) / 8 for block in spec.blocks}
    return AdapterState(spec, {block_id: np.asarray(vector, np.float32) for block_id, vector in vectors.items()})


def toy_plan(
    spec: AdapterSpec,
    *,
    weight: str = "uniform",
    max_weight: int = 10_000,
    seed: int = 0,
    secagg: SecureAggregation = SecureAggregation(max_abs=4.0),  # noqa: B008
) -> LearningPlan:
    """A plan for ``spec`` that any of the trainers below accepts; it trains for a hundred rounds."""
    return LearningPlan(
        run_id="toy-run",
        seed=seed,
        base="sha256:toy",
        adapter_spec=spec.digest,
        task=Task(kind="classify", labels=("no", "yes")),
        adapter=Adapter.having(Lora(rank=4)),
        train=Train(local_steps=4, batch_size=8, learning_rate=0.1),
        aggregate=Aggregate.model_validate({"weight": weight, "max_weight": max_weight}),
        rounds=PlannedRounds(count=100, eval_examples=0),
        secagg=secagg,
    )


def toy_plan_of(config: RunConfig, spec: AdapterSpec) -> LearningPlan:
    """The plan of a configured run whose adapter is a toy: schedule, rounds and the secure sum are the run's.

    Given deltas obey no learning rate, so the range that follows from rates is not for them.
    """
    asked = learning_plan(config, run_id="toy-run", base="sha256:toy", adapter_spec=spec.digest)
    changes = {name: getattr(asked, name) for name in ("train", "rounds", "secagg", "privacy", "client_privacy")}
    if config.secagg.max_abs == "auto":
        changes["secagg"] = config.secagg.model_copy(update={"max_abs": CEILING})
    return toy_plan(spec).model_copy(update=changes)


def one_hot(size: int, place: int) -> Vector:
    """(size,) zeros with a one at ``place``."""
    vector = np.zeros(size, np.float32)
    vector[place] = 1.0
    return vector


class GivenTrainer:
    """``Trainer`` whose deltas are given: in a sum of one-hot deltas a 2 is a replay and a 0 a loss.

    Args:
        spec: what it builds from any plan.
        deltas: what it finds, in every round.
        examples: how many it says it has.
        measured: evaluated loss, correct, evaluated.
        first: what a run begins with; None: ``toy_state``.
        lanes: what it finds for the lanes of the task's measure; None: nothing.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        deltas: Mapping[str, Vector],
        *,
        examples: int = 10,
        measured: tuple[float, int, int] = (3.0, 2, 4),
        first: AdapterState | None = None,
        lanes: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._first, self._lanes = first, lanes
        self._spec, self._examples, self._measured = spec, examples, measured
        self.deltas = {BlockId(name): delta for name, delta in deltas.items()}
        self.fitted: list[Work] = []
        self.received: list[AdapterState] = []

    @property
    def methods(self) -> str:
        """See ``Trainer``."""
        return " + ".join(sorted(self.deltas))

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        return self._spec

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """See ``Trainer``."""
        return toy_state(self._spec) if self._first is None else self._first

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        return frozenset(self.deltas)

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """See ``Trainer``."""
        return size_class(self._examples)

    def evaluates(self, plan: LearningPlan) -> bool:
        """See ``Trainer``."""
        return self._measured[2] > 0

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``: as a device with so many examples; its deltas are as given all the same."""
        return round_cost(plan, declared=self.size_class(plan), parameters=sum(map(len, self.deltas.values())))

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``; remembers what it was asked."""
        self.fitted.append(work)
        self.received.append(state)
        loss, correct, evaluated = self._measured
        return LocalResult(
            deltas=dict(self.deltas) if work.train else {},
            trained_loss=8.0 if work.train else 0.0,
            trained=4 if work.train else 0,
            evaluated_loss=loss,
            correct=correct,
            evaluated=evaluated,
            lanes=self._lanes,
        )


class LinearTrainer:
    """``Trainer`` of least squares: one weight a coordinate of the state, on examples of its own.

    Its result depends on the received state, on ``first_step`` and on its name, as a real one's does. It remembers what
    it was asked.

    Args:
        name: decides its examples and their order.
        spec: what it builds from any plan.
        trains: the blocks it trains; the others it applies as they are.
        examples: how many it has.
    """

    def __init__(self, name: str, spec: AdapterSpec, trains: frozenset[str], *, examples: int = 40) -> None:
        self._name, self._spec, self._trains = name, spec, frozenset(BlockId(block) for block in trains)
        draw = generator(0, "linear", name)
        width = sum(block.size for block in spec.blocks)
        truth = generator(0, "linear truth").standard_normal(width)
        self._inputs = draw.standard_normal((examples + 8, width))
        self._targets = self._inputs @ truth + 0.1 * draw.standard_normal(examples + 8)
        self._examples = examples
        self.fitted: list[Work] = []

    @property
    def methods(self) -> str:
        """See ``Trainer``."""
        return " + ".join(sorted(self._trains))

    def spec(self, plan: LearningPlan) -> AdapterSpec:
        """See ``Trainer``."""
        return self._spec

    def first_state(self, plan: LearningPlan) -> AdapterState:
        """See ``Trainer``: what ``toy_state`` makes unless told otherwise."""
        return toy_state(self._spec)

    def trains(self, plan: LearningPlan) -> frozenset[BlockId]:
        """See ``Trainer``."""
        return self._trains

    def size_class(self, plan: LearningPlan) -> SizeClass:
        """See ``Trainer``."""
        return size_class(self._examples)

    def evaluates(self, plan: LearningPlan) -> bool:
        """See ``Trainer``."""
        return True

    def cost(self, plan: LearningPlan) -> SampledRelease | None:
        """See ``Trainer``: it adds no noise."""
        return None

    def fit(self, plan: LearningPlan, state: AdapterState, work: Work, effort: Effort = Effort.FULL) -> LocalResult:
        """See ``Trainer``: ``local_steps`` steps of gradient descent on one example each."""
        self.fitted.append(work)
        weights = _joined(state)
        before = weights.copy()
        trained = np.concatenate([np.full(state[block_id].size, block_id in self._trains) for block_id in state])
        held_out = np.square(self._inputs[self._examples :] @ weights - self._targets[self._examples :])
        steps = local_steps(plan, self._spec, work.round_id) if work.train else 0
        rate = 0.02 * work.learning_rate_factor * (work.learning_rate_scale or 1.0)
        losses = 0.0
        for step in range(work.first_step, work.first_step + steps):
            row = self._inputs[step % self._examples]
            error = float(row @ weights - self._targets[step % self._examples])
            losses += error * error
            weights -= rate * error * row * trained
        deltas: dict[BlockId, Vector] = {}
        start = 0
        for block_id in state:
            stop = start + state[block_id].size
            if work.train and block_id in self._trains:
                deltas[block_id] = (weights - before)[start:stop].astype(np.float32)
            start = stop
        return LocalResult(
            deltas=deltas,
            trained_loss=losses,
            trained=steps,
            evaluated_loss=float(held_out.sum()) / 64.0,  # far below the largest loss that is told
            correct=int((held_out < 1.0).sum()),
            evaluated=len(held_out),
            probes=self._probes(state) if probes_rate(plan, self._spec, work.round_id) else None,
        )

    def _probes(self, state: AdapterState) -> npt.NDArray[np.float64]:
        inputs, targets = self._inputs[self._examples :], self._targets[self._examples :]
        moved = [_joined(one) for one in probe_states(toy_state(self._spec), state)]
        return np.array([np.square(inputs @ weights - targets).mean() / 64.0 for weights in moved])


def _joined(state: AdapterState) -> npt.NDArray[np.float64]:
    return np.concatenate([state[block_id] for block_id in state]).astype(np.float64)  # (W,)
