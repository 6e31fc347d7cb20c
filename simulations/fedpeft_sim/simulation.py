"""A simulation that is prepared."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.adapter import AdapterState
from fedpeft.base import BaseArtifact
from fedpeft.config import RunConfig
from fedpeft.round.plan import LearningPlan
from fedpeft_client.training.examples import Examples
from fedpeft_client.training.model_pool import ModelPool
from fedpeft_sim.population import Population
from fedpeft_sim.screen import Screen

__all__ = ["Screen", "Simulation"]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Everything that is decided before the first round.

    Args:
        population: the clients, and the config with labels resolved.
        artifact: the base.
        pool: the base loaded, with the adapter.
        examples: client name -> its examples; the baselines find them encoded and their activations cached.
        plan: what devices are asked to learn; its run id is still empty.
        initial: where the run begins.
    """

    population: Population
    artifact: BaseArtifact
    pool: ModelPool
    examples: Mapping[str, Examples]
    plan: LearningPlan
    initial: AdapterState

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return self.population.config
