"""What a run asks of a device: the learning plan that travels with every fit request.

The plan is the part of run.toml that decides what is learnt, as strict JSON. A device parses it with the
same models as the coordinator, builds the adapter itself and compares digests: it never takes shapes,
code or paths from the coordinator.
"""

from math import cos, pi
from typing import Literal, Self

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from fedpeft.catalogue.opacus import Engine
from fedpeft.config.model import (
    MAX_STALENESS,
    Adapter,
    Aggregate,
    Privacy,
    Rounds,
    RunConfig,
    Section,
    SecureAggregation,
    Task,
    Train,
)
from fedpeft.config.plugins_used import learning_plugins
from fedpeft.config.private_engine import engine_of
from fedpeft.errors import SpecMismatch
from fedpeft.plugins import expect_installed

__all__ = [
    "MAX_STATE",
    "ExampleTerms",
    "LearningPlan",
    "PlannedRounds",
    "example_terms",
    "learning_plan",
    "learning_rate_factor",
]

MAX_STATE = 1e4
"""Largest magnitude of a trained coordinate of a state: far above what training reaches, far below what makes a loss
overflow. On the tiny models the largest start is 5 (diff pruning's gates, which are set to 10 when they close), and a
coordinate moves by about one learning rate per step (benchmarks/state_sizes.py, which was not run on larger ones): ten
thousand steps at 0.1 add a thousand."""


class ExampleTerms(Section):
    """DP-SGD, as a run asks it of a device; the device finds its own noise, and may refuse.

    Args:
        epsilon, delta: the most that any one unit may lose over the whole run.
        l2_clip_norm: the gradient of each unit is clipped to it.
        noise_multiplier: of every device; None: each device's least that keeps ``steps`` within the budget.
        steps: optimizer steps of the whole run.
        unit: one training example, or one person of one device; which column names people is the site's to say.
        examples_per_person: for people: a step looks at so many examples of each at most.
        persons: for people: that none is on two devices, as the plan declares and each site must.
        engine: whose hooks have the gradients of single examples; their rounding can differ, so it is agreed.
        noise: of a device's steps; correlated, each device finds how far it reaches, and ``noise_multiplier`` is None.
        momentum: per step, of what the coordinator makes of the steps: what correlated noise is shaped for.
    """

    epsilon: float
    delta: float
    l2_clip_norm: float
    noise_multiplier: float | None
    steps: int
    unit: Literal["example", "person"] = "example"
    examples_per_person: int = Field(default=1, ge=1, le=4096)
    persons: Literal["undeclared", "do-not-cross"] = "undeclared"
    engine: Engine = "fedpeft"
    noise: Literal["independent", "correlated"] = "independent"
    momentum: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.noise == "correlated" and self.noise_multiplier is not None:
            raise ValueError("Expected no noise multiplier for correlated noise: each device finds its own.")
        if self.noise == "independent" and self.momentum:
            raise ValueError("Expected no momentum for independent noise.")
        return self

    @model_serializer(mode="wrap")
    def _as_before_there_was_a_choice(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = serialize(self)
        if self.noise == "correlated":
            return written
        return {key: value for key, value in written.items() if key not in ("noise", "momentum")}


class PlannedRounds(Section):
    """How many rounds train, how many held-out examples a device evaluates in each (0: all), how late work may be."""

    count: int = Field(ge=1, le=100_000)
    eval_examples: int = Field(ge=0, lt=2**31)
    max_staleness: int = Field(default=0, ge=0, le=MAX_STALENESS)

    @model_serializer(mode="wrap")
    def _without_what_means_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = serialize(self)
        if not self.max_staleness:
            del written["max_staleness"]
        return written


class LearningPlan(Section):
    """One run's learning, the same in every round.

    ``base`` and ``adapter_spec`` are digests: of the base artifact, and of the specification of the union
    adapter that ``adapter`` makes on that base with ``seed``. ``secagg`` and ``client_privacy`` are the run's sections
    that every round's terms follow from; the latter with its noise multiplier, and only under client-level privacy.
    ``start`` is the digest of the state of round 1, where that is not what the plan makes on the base.
    ``plugins`` are those that the run's methods and rule come from, with package and version: a device has the same.
    """

    run_id: str
    seed: int
    base: str
    adapter_spec: str
    task: Task
    adapter: Adapter
    train: Train
    aggregate: Aggregate
    rounds: PlannedRounds
    secagg: SecureAggregation
    privacy: ExampleTerms | None = None
    client_privacy: Privacy | None = None
    max_state: float = Field(default=MAX_STATE, gt=0)
    start: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    plugins: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_what_means_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = serialize(self)
        noise = written["client_privacy"]
        if isinstance(noise, dict):  # it takes no gradients of single examples
            mine = ("engine", "noise")
            written["client_privacy"] = {key: value for key, value in noise.items() if key not in mine}
        return written if self.plugins else {key: value for key, value in written.items() if key != "plugins"}

    def to_json(self) -> str:
        """Strict JSON, one encoding: fields in order of declaration."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> "LearningPlan":
        """The inverse of ``to_json``.

        Raises:
            SpecMismatch: not a plan that this version of fedpeft knows, or another spelling of one: a plan is known
                by the digest of its text.
            ResourceMissing: it needs a plug-in that is not installed here; names it.
        """
        try:
            plan = cls.model_validate_json(text)
        except ValidationError as error:
            _expect_plugins(text)  # the likelier cause, where there are some
            raise SpecMismatch(f"Expected a learning plan of this version of fedpeft: {error}") from error
        if plan.to_json() != text:
            raise SpecMismatch("Expected the one spelling of a learning plan, found another; update fedpeft.")
        expect_installed(plan.plugins)
        if plan.plugins != learning_plugins(plan.adapter, plan.aggregate):
            raise SpecMismatch("Expected a plan that names the plug-ins of its methods and rule, found others.")
        return plan


class _Needs(BaseModel):
    """What is read of a plan that cannot be read."""

    plugins: dict[str, str] = Field(default_factory=dict)


def _expect_plugins(text: str) -> None:
    try:
        needs = _Needs.model_validate_json(text)
    except ValidationError:
        return
    expect_installed(needs.plugins)


def learning_plan(config: RunConfig, *, run_id: str, base: str, adapter_spec: str) -> LearningPlan:
    """The plan of a run. ``config.task.labels`` must be resolved already."""
    return LearningPlan(
        run_id=run_id,
        seed=config.run.seed,
        base=base,
        adapter_spec=adapter_spec,
        task=config.task,
        adapter=config.adapter,
        train=config.train,
        aggregate=config.aggregate,
        rounds=PlannedRounds(
            count=config.rounds.count,
            eval_examples=config.rounds.eval_examples,
            max_staleness=config.rounds.max_staleness,
        ),
        secagg=config.secagg,
        privacy=example_terms(config),
        client_privacy=config.privacy if config.privacy.unit == "client" else None,
        plugins=learning_plugins(config.adapter, config.aggregate),
    )


def example_terms(config: RunConfig) -> ExampleTerms | None:
    """What a run asks of each device's examples; None unless it is private by examples or people."""
    privacy = config.privacy
    if privacy.unit not in ("example", "person") or privacy.epsilon is None or privacy.delta is None:
        return None
    people = privacy.unit == "person"
    return ExampleTerms(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        l2_clip_norm=privacy.l2_clip_norm,
        noise_multiplier=privacy.noise_multiplier,
        steps=config.rounds.count * config.train.local_steps,
        unit="person" if people else "example",
        examples_per_person=privacy.examples_per_person if people else 1,
        persons="do-not-cross" if people and privacy.persons == "do-not-cross" else "undeclared",
        engine=engine_of(config.adapter, privacy.engine),
        noise=privacy.noise,
        momentum=_momentum(config) if privacy.noise == "correlated" else 0.0,
    )


def _momentum(config: RunConfig) -> float:
    """Per step: a round's steps together keep as much of what came before them as the coordinator does per round."""
    aggregate = config.aggregate
    return aggregate.server_beta1 ** (1 / config.train.local_steps) if aggregate.server_optimizer == "momentum" else 0.0


def learning_rate_factor(train: Train, rounds: Rounds | PlannedRounds, round_id: int) -> float:
    """The schedule over rounds, in [0, 1]: linear warm-up, then constant, linear or cosine decay.

    Args:
        round_id: 1..rounds.count. Decay ends above zero: the last round still learns.
    """
    if round_id <= train.warmup_rounds:
        return round_id / (train.warmup_rounds + 1)
    done = (round_id - 1 - train.warmup_rounds) / max(1, rounds.count - train.warmup_rounds)
    match train.decay:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + cos(pi * done))
